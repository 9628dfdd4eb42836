//! The host side of one sandbox: lifecycle, network, storage, resources, ledger.

pub mod cgroup;
pub mod ledger;
pub mod network;
pub mod share;
pub mod step;
