//! Filters of system calls (seccomp) as programs in classic BPF.

use std::io;

/// Bytes of an [`Instruction`] as the kernel and its libraries lay it out.
pub const INSTRUCTION_SIZE: usize = 8;

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

impl Instruction {
    /// As laid out in memory by this machine's kernel.
    pub fn from_bytes(bytes: [u8; INSTRUCTION_SIZE]) -> Self {
        let [c0, c1, if_true, if_false, k0, k1, k2, k3] = bytes;
        let (code, operand) = (u16::from_ne_bytes([c0, c1]), u32::from_ne_bytes([k0, k1, k2, k3]));
        Self { code, if_true, if_false, operand }
    }

    /// The reverse of [`Instruction::from_bytes`].
    pub fn to_bytes(self) -> [u8; INSTRUCTION_SIZE] {
        let ([c0, c1], [k0, k1, k2, k3]) = (self.code.to_ne_bytes(), self.operand.to_ne_bytes());
        [c0, c1, self.if_true, self.if_false, k0, k1, k2, k3]
    }
}

/// How a filter is installed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flags {
    /// For all threads of the process.
    pub all_threads: bool,
    /// What it refuses may be logged.
    pub log: bool,
    /// It does not switch on the defence against speculative store bypass.
    pub allow_speculation: bool,
}

impl Flags {
    /// As the kernel numbers them.
    pub fn bits(self) -> u32 {
        [self.all_threads, self.log, self.allow_speculation]
            .iter()
            .enumerate()
            .map(|(bit, set)| u32::from(*set) << bit)
            .sum()
    }

    /// The reverse of [`Flags::bits`].
    pub fn from_bits(bits: u32) -> Self {
        let [all_threads, log, allow_speculation] = [0, 1, 2].map(|bit| bits >> bit & 1 == 1);
        Self { all_threads, log, allow_speculation }
    }
}

/// A filter that is still to be installed.
#[derive(Debug, Clone, Copy)]
pub struct Filter<'a> {
    /// What it does.
    pub program: &'a [Instruction],
    /// How it is installed.
    pub flags: Flags,
}

impl Filter<'_> {
    /// Installs it for this thread and all that it starts or executes, for good.
    ///
    /// # Errors
    /// `EACCES` without `no_new_privs` and CAP_SYS_ADMIN; `EINVAL` when the kernel can't verify the program.
    pub fn load(&self) -> io::Result<()> {
        if self.lay_out()?.load() { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    pub(crate) fn lay_out(&self) -> io::Result<LaidOut> {
        let sentence = |it: &Instruction| libc::sock_filter {
            code: it.code,
            jt: it.if_true,
            jf: it.if_false,
            k: it.operand,
        };
        Ok(LaidOut {
            length: u16::try_from(self.program.len()).map_err(io::Error::other)?,
            program: self.program.iter().map(sentence).collect(),
            flags: libc::c_ulong::from(self.flags.bits()),
        })
    }
}

/// A filter as the kernel takes it.
#[derive(Debug)]
pub(crate) struct LaidOut {
    program: Vec<libc::sock_filter>,
    length: u16,
    flags: libc::c_ulong,
}

impl LaidOut {
    /// One system call and no more, for children of a clone; false with errno set.
    pub(crate) fn load(&self) -> bool {
        let filter =
            libc::sock_fprog { len: self.length, filter: self.program.as_ptr().cast_mut() };
        // SAFETY: `filter` describes `length` instructions of `program`, its own; the kernel writes none of them,
        // copies them and checks every jump, all before the call returns.
        let result = unsafe {
            let mode = libc::SECCOMP_SET_MODE_FILTER;
            libc::syscall(libc::SYS_seccomp, mode, self.flags, &raw const filter)
        };
        result == 0
    }
}

#[cfg(test)]
mod tests {
    use super::{Flags, Instruction};

    #[test]
    fn what_is_laid_out_reads_the_same() {
        let jump = Instruction { code: 0x15, if_true: 1, if_false: 2, operand: 0xdead_beef };
        assert_eq!(Instruction::from_bytes(jump.to_bytes()), jump);
        // Code, jt, jf, k: as in linux/filter.h.
        assert_eq!(jump.to_bytes()[2..4], [1, 2]);
        for bits in 0..8 {
            assert_eq!(Flags::from_bits(bits).bits(), bits);
        }
        let log = Flags { log: true, ..Flags::default() }.bits();
        assert_eq!(u64::from(log), libc::SECCOMP_FILTER_FLAG_LOG);
    }
}
