//! The device from both ends: a guest that writes rings into memory, and a host that holds the Unix sockets.

mod ends;
mod hostile;
mod rig;
mod streams;
