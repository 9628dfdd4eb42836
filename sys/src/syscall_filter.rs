//! Filters of system calls (seccomp) that are put together by hand, in classic BPF.

use std::io;

/// One instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation code.
    pub code: u16,
    /// How many instructions a true comparison skips.
    pub if_true: u8,
    /// How many a false one skips.
    pub if_false: u8,
    /// Operand.
    pub operand: u32,
}

/// Installs a filter for this thread and all that it starts or executes, for good.
///
/// # Errors
/// `EACCES` without `no_new_privs` and CAP_SYS_ADMIN; `EINVAL` when the kernel can't verify the program.
pub fn load(program: &[Instruction]) -> io::Result<()> {
    let mut program: Vec<libc::sock_filter> = program
        .iter()
        .map(|it| libc::sock_filter {
            code: it.code,
            jt: it.if_true,
            jf: it.if_false,
            k: it.operand,
        })
        .collect();
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    let filter = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    // SAFETY: `filter` describes `length` instructions of `program`; both outlive the call, which copies them and
    // checks every jump.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
