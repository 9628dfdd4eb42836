//! The host side of one sandbox: lifecycle, network, storage, resources, ledger.

pub mod cgroup;
pub mod guest;
pub mod ledger;
pub mod network;
pub mod packet;
pub mod proxy;
pub mod share;
pub mod step;
