//! A filter that refuses system calls by number, or by one argument, with EPERM.
//!
//! It is the wall behind the wall: what a jailed program needs is decided by its own, tighter filter; this
//! one takes away what no jailed program of ours ever needs, and holds from its first instruction.

use std::io;

use super::JailError;

/// One refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The system call, whatever its arguments.
    Always(libc::c_long),
    /// The system call, unless the low half of this argument has this value.
    Unless {
        /// Its number.
        call: libc::c_long,
        /// Which argument, from 0.
        argument: u8,
        /// The one value that is let through.
        value: u32,
    },
}

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// First number of the x32 calls, which reach the same code by other numbers.
const X32: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

const REFUSED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;

fn instruction(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

fn jump(code: u16, k: u32, (jt, jf): (u8, u8)) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

fn program(refusals: &[Refusal]) -> Vec<libc::sock_filter> {
    let mut program = vec![
        instruction(LOAD, ARCH),
        jump(EQUAL, ARCHITECTURE, (1, 0)),
        instruction(RETURN, libc::SECCOMP_RET_KILL_PROCESS),
        instruction(LOAD, NUMBER),
        jump(AT_LEAST, X32, (0, 1)),
        instruction(RETURN, REFUSED),
    ];
    for refusal in refusals {
        match *refusal {
            Refusal::Always(call) => {
                program.push(jump(EQUAL, call as u32, (0, 1)));
                program.push(instruction(RETURN, REFUSED));
            }
            Refusal::Unless { call, argument, value } => {
                program.push(jump(EQUAL, call as u32, (0, 4)));
                program.push(instruction(LOAD, ARGUMENTS + 8 * u32::from(argument)));
                program.push(jump(EQUAL, value, (1, 0)));
                program.push(instruction(RETURN, REFUSED));
                program.push(instruction(LOAD, NUMBER));
            }
        }
    }
    program.push(instruction(RETURN, libc::SECCOMP_RET_ALLOW));
    program
}

/// Installs the refusals for this thread and all that it starts or executes, for good.
///
/// # Errors
/// [`JailError::Filter`]: `EACCES` without `no_new_privs` and CAP_SYS_ADMIN.
pub fn deny(refusals: &[Refusal]) -> Result<(), JailError> {
    let mut program = program(refusals);
    let length = u16::try_from(program.len()).map_err(|_| {
        JailError::Filter(io::Error::new(io::ErrorKind::InvalidInput, "too many refusals"))
    })?;
    let filter = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    // SAFETY: `filter` describes `length` instructions of `program`; both outlive the call, which copies
    // them and checks every jump.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter)
    };
    if result == 0 { Ok(()) } else { Err(JailError::Filter(io::Error::last_os_error())) }
}
