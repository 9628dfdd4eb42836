//! Options of `exec`; names are runc's.

use std::path::PathBuf;

use clap::Args;

use crate::{id::ContainerId, words::UserIds};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kata-runtime exec web ps aux
  kata-runtime exec -t web sh
  kata-runtime exec --process process.json --detach --pid-file pid web

What is not named is as the container's own process has it. Options of runc that mean nothing to a VM are taken:
--apparmor, --process-label, --no-subreaper. --cgroup and --preserve-fds are refused.")]
pub struct Exec {
    /// File with the process as an OCI spec has it
    #[arg(long, short, value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Do not wait for the end
    #[arg(long, short)]
    pub detach: bool,
    /// Give the process a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// Socket that gets the terminal's master
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// File to write the process's pid to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Working directory in the container; the container's own unless given
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// Set an environment variable, besides those of the container
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// User to run as, by number; the container's own unless given
    #[arg(long, short, value_name = "UID[:GID]")]
    pub user: Option<UserIds>,
    /// Add a group
    #[arg(long, short = 'g', value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// Add a capability to the container's own
    #[arg(long, short, value_name = "CAP")]
    pub cap: Vec<String>,
    /// Forbid new privileges
    #[arg(long)]
    pub no_new_privs: bool,
    /// In a paused container, wait until it is resumed
    #[arg(long)]
    pub ignore_paused: bool,
    /// AppArmor profile; without a meaning in the guest, as in a spec
    #[arg(long, value_name = "PROFILE", hide = true)]
    pub apparmor: Option<String>,
    /// SELinux label; without a meaning in the guest, as in a spec
    #[arg(long, value_name = "LABEL", hide = true)]
    pub process_label: Option<String>,
    /// Accepted for runc's sake: nothing of the guest becomes a child of this program
    #[arg(long, hide = true)]
    pub no_subreaper: bool,
    /// Not supported: the process is in the control group of its container
    #[arg(long, value_name = "GROUP", hide = true)]
    pub cgroup: Vec<String>,
    /// Not supported: descriptors beyond stderr can't enter a VM
    #[arg(long, value_name = "N", default_value_t = 0, hide = true)]
    pub preserve_fds: u32,
    /// Socket that gets a pidfd of the process that stands for the new one
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// Id of the container
    pub id: ContainerId,
    /// Command to run, unless --process is given
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}
