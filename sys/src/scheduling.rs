//! When a thread runs, and when its input and output do.

use std::{io, mem::size_of};

use rustix::process::Pid;

/// `struct sched_attr` of `linux/sched/types.h`, as the first version has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Scheduler {
    /// Set by [`Scheduler::apply`].
    size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For SCHED_OTHER and SCHED_BATCH.
    pub nice: i32,
    /// For SCHED_FIFO and SCHED_RR.
    pub priority: u32,
    /// Nanoseconds, for SCHED_DEADLINE.
    pub runtime: u64,
    /// Nanoseconds, for SCHED_DEADLINE.
    pub deadline: u64,
    /// Nanoseconds, for SCHED_DEADLINE.
    pub period: u64,
}

impl Scheduler {
    /// A policy without any parameter.
    pub fn new(policy: u32) -> Self {
        let (flags, nice, priority, runtime, deadline, period) = (0, 0, 0, 0, 0, 0);
        // A struct of some 50 bytes.
        let size = size_of::<Self>() as u32;
        Self { size, policy, flags, nice, priority, runtime, deadline, period }
    }

    /// Schedules a thread so, and what it executes; `None` is the calling one.
    ///
    /// # Errors
    /// Those of sched_setattr(2).
    pub fn apply(&self, thread: Option<Pid>) -> io::Result<()> {
        // SAFETY: the attributes are plain integers of the size that their first field tells, and outlive the call.
        let result = unsafe {
            libc::syscall(libc::SYS_sched_setattr, Pid::as_raw(thread), std::ptr::from_ref(self), 0)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Sets class (1 real time, 2 best effort, 3 idle) and level (0 to 7) of a thread's input and output; `None` is the
/// calling one.
///
/// # Errors
/// Those of ioprio_set(2).
pub fn set_io_priority(thread: Option<Pid>, class: u8, level: u8) -> io::Result<()> {
    const WHO_PROCESS: libc::c_int = 1;
    const CLASS_SHIFT: u32 = 13;
    let priority = (libc::c_int::from(class) << CLASS_SHIFT) | libc::c_int::from(level);
    // SAFETY: takes three integers.
    let result =
        unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, Pid::as_raw(thread), priority) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::{Scheduler, set_io_priority};

    #[test]
    fn a_thread_can_make_itself_less_important() {
        std::thread::spawn(|| {
            let mut batch = Scheduler::new(3);
            batch.nice = 5;
            batch.apply(None).unwrap();
            set_io_priority(None, 3, 0).unwrap();
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
            // proc_pid_stat(5): nice is the 19th field, the policy the 41st; these begin with the third.
            assert_eq!((fields[16], fields[38]), ("5", "3"));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn an_unknown_policy_is_an_error() {
        assert!(Scheduler::new(99).apply(None).is_err());
    }
}
