//! eBPF: loading of programs, and attaching of those that are the device rules of a cgroup.

use std::{
    io,
    mem::size_of,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

/// One eBPF instruction, as the kernel reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Operation code.
    pub code: u8,
    /// Destination register in the low, source register in the high four bits.
    pub registers: u8,
    /// Jump distance or memory offset.
    pub offset: i16,
    /// Immediate operand.
    pub immediate: i32,
}

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;

/// What a program is for: values of `enum bpf_prog_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ProgramKind {
    /// `BPF_PROG_TYPE_SCHED_CLS`: decides on a packet that a link receives or sends.
    Classifier = 3,
    /// `BPF_PROG_TYPE_CGROUP_DEVICE`: decides on the opening of a device node.
    CgroupDevice = 15,
}

/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`: changes the address of a call about a socket.
const CGROUP_ADDRESS: u32 = 18;

/// Calls whose address a program may change: values of `enum bpf_attach_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum AddressHook {
    /// connect(2) of a socket of version 4.
    ConnectV4 = 10,
    /// The same of version 6.
    ConnectV6 = 11,
    /// A datagram to an address of version 4 that its socket is not connected to.
    SendV4 = 14,
    /// Where a datagram has come from, for a socket of version 4.
    ReceiveV4 = 19,
    /// The same of version 6.
    ReceiveV6 = 20,
    /// getpeername(2) of a socket of version 4.
    PeerNameV4 = 29,
    /// The same of version 6.
    PeerNameV6 = 30,
}

impl AddressHook {
    /// Whether the address is one of version 6, be it a mapped one.
    pub fn is_v6(self) -> bool {
        matches!(self, Self::ConnectV6 | Self::ReceiveV6 | Self::PeerNameV6)
    }
}

const ATTACH_CGROUP_DEVICE: u32 = 6;
const ATTACH_ALLOW_MULTI: u32 = 2;

/// The beginning of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    program_flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

/// The beginning of `union bpf_attr` for BPF_PROG_ATTACH.
#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replaced: u32,
}

/// Gives a program to the kernel, which verifies it.
///
/// # Errors
/// `EINVAL` or `EACCES` when the verifier refuses; `EPERM` without CAP_BPF.
pub fn load(kind: ProgramKind, instructions: &[Instruction]) -> io::Result<OwnedFd> {
    load_for(kind as u32, 0, instructions)
}

/// The same, of a program for one of the calls about sockets.
///
/// # Errors
/// As of [`load`].
pub fn load_address_program(
    hook: AddressHook,
    instructions: &[Instruction],
) -> io::Result<OwnedFd> {
    load_for(CGROUP_ADDRESS, hook as u32, instructions)
}

fn load_for(
    program_type: u32,
    attach_type: u32,
    instructions: &[Instruction],
) -> io::Result<OwnedFd> {
    let attributes = LoadAttributes {
        program_type,
        instruction_count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        instructions: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        attach_type,
        ..LoadAttributes::default()
    };
    let fd = loop {
        // SAFETY: the attributes name `instruction_count` instructions and a NUL-terminated licence, all of which outlive
        // the call; there is no log buffer for the kernel to write to.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                PROG_LOAD,
                &raw const attributes,
                size_of::<LoadAttributes>(),
            )
        };
        if let Some(fd) = i32::try_from(fd).ok().filter(|fd| *fd >= 0) {
            break fd;
        }
        let error = io::Error::last_os_error();
        // The verifier gives up when a signal is pending, and says so with EAGAIN, not EINTR.
        if error.raw_os_error() != Some(libc::EAGAIN) {
            return Err(error);
        }
    };
    // SAFETY: BPF_PROG_LOAD returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a device program to a cgroup directory; programs of its ancestors stay in force.
///
/// `replaced` is detached in the same instant; without it the program is added.
///
/// # Errors
/// Those of bpf(2).
pub fn attach_device_program(
    cgroup: impl AsFd,
    program: impl AsFd,
    replaced: Option<&OwnedFd>,
) -> io::Result<()> {
    const REPLACE: u32 = 4;
    let attributes = AttachAttributes {
        target: cgroup.as_fd().as_raw_fd() as u32,
        program: program.as_fd().as_raw_fd() as u32,
        kind: ATTACH_CGROUP_DEVICE,
        flags: ATTACH_ALLOW_MULTI | replaced.map_or(0, |_| REPLACE),
        replaced: replaced.map_or(0, |program| program.as_raw_fd() as u32),
    };
    change(PROG_ATTACH, &attributes)
}

/// A program at a cgroup; dropping it takes it away.
#[derive(Debug)]
pub struct Attached {
    hook: AddressHook,
    cgroup: OwnedFd,
    program: OwnedFd,
}

impl Attached {
    fn attributes(&self, flags: u32) -> AttachAttributes {
        AttachAttributes {
            target: self.cgroup.as_raw_fd() as u32,
            program: self.program.as_raw_fd() as u32,
            kind: self.hook as u32,
            flags,
            replaced: 0,
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // It fails when the group is gone, and the program with it.
        change(PROG_DETACH, &self.attributes(0)).ok();
    }
}

/// Attaches a program for one of the calls about sockets to a cgroup directory; those of its ancestors and descendants stay in force.
///
/// # Errors
/// Those of bpf(2).
pub fn attach_address_program(
    hook: AddressHook,
    cgroup: OwnedFd,
    program: OwnedFd,
) -> io::Result<Attached> {
    let attached = Attached { hook, cgroup, program };
    change(PROG_ATTACH, &attached.attributes(ATTACH_ALLOW_MULTI))?;
    Ok(attached)
}

fn change(command: libc::c_int, attributes: &AttachAttributes) -> io::Result<()> {
    // SAFETY: the attributes are plain integers and outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<AttachAttributes>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
