//! A virtio-vsock device of our own.
//!
//! A guest dials the host's listed ports; each connection becomes a Unix stream socket whose other end the host is
//! handed ([`muxer::Announcer`]). The host never dials, nothing else can be reached, and there are streams only.
//!
//! | module | holds |
//! |---|---|
//! | [`header`] | the packet header |
//! | [`chain`] | descriptor chains, judged and cut into header and payload |
//! | [`credit`] | flow control of one connection |
//! | [`backlog`] | bytes that the host side does not take yet |
//! | [`connection`] | the state machine of one connection |
//! | [`muxer`] | all connections, their turns and their bounds |
//! | [`device`] | the two queues |
//! | [`backend`] | the vhost-user face |

pub mod backend;
pub mod backlog;
pub mod chain;
pub mod connection;
pub mod credit;
pub mod device;
pub mod header;
pub mod muxer;

#[cfg(test)]
mod tests;
