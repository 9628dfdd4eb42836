//! The host side of one sandbox: lifecycle, network, storage, resources, ledger.

pub mod agent;
mod answers;
pub mod budget;
pub mod cgroup;
pub mod clock;
pub mod disk;
pub mod guest;
pub mod layers;
pub mod ledger;
pub mod lifecycle;
pub mod loss;
pub mod network;
pub mod packet;
pub mod process;
pub mod proxy;
pub mod random;
pub mod share;
pub mod step;
pub mod vm;
