//! Options of `update`; names are runc's.

use std::path::PathBuf;

use clap::Args;

use crate::{id::ContainerId, words::Limit};

#[derive(Debug, Args)]
#[command(
    after_help = "What is not named stays. Sizes are bytes, or with K to P; -1 is no limit. Memory and CPUs are those that the VM has:
a limit above them is taken, with a warning. --cpu-rt-period, --cpu-rt-runtime, --l3-cache-schema and --mem-bw-schema
are refused.

Examples:
  kata-runtime update --memory 512M --cpu-quota 150000 web
  echo '{\"pids\": {\"limit\": 100}}' | kata-runtime update --resources - web"
)]
pub struct Update {
    /// File with linux.resources as JSON, or - for stdin; other options are ignored then
    #[arg(long, short, value_name = "FILE")]
    pub resources: Option<PathBuf>,
    /// Memory limit
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub memory: Option<Limit>,
    /// Memory that is left to the container when memory is short
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub memory_reservation: Option<Limit>,
    /// Limit of memory and swap together
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub memory_swap: Option<Limit>,
    /// Accepted for runc's sake: only old kernels have such a limit
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, hide = true)]
    pub kernel_memory: Option<Limit>,
    /// Accepted for runc's sake: only old kernels have such a limit
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, hide = true)]
    pub kernel_memory_tcp: Option<Limit>,
    /// CPU shares, against other containers
    #[arg(long, value_name = "N")]
    pub cpu_share: Option<u64>,
    /// CPU time in each period, in microseconds
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,
    /// Period of the quota, in microseconds
    #[arg(long, value_name = "US")]
    pub cpu_period: Option<u64>,
    /// CPU time that may be saved up, in microseconds
    #[arg(long, value_name = "US")]
    pub cpu_burst: Option<u64>,
    /// 1: only when nobody else wants the CPU
    #[arg(long, value_name = "N")]
    pub cpu_idle: Option<i64>,
    /// Not supported: control groups v2, which the guest has, can't
    #[arg(long, value_name = "US", hide = true)]
    pub cpu_rt_period: Option<u64>,
    /// Not supported: control groups v2, which the guest has, can't
    #[arg(long, value_name = "US", allow_hyphen_values = true, hide = true)]
    pub cpu_rt_runtime: Option<i64>,
    /// Not supported: cache and bandwidth of the host can't be given to a VM yet
    #[arg(long, value_name = "SCHEMA", hide = true)]
    pub l3_cache_schema: Option<String>,
    /// Not supported: cache and bandwidth of the host can't be given to a VM yet
    #[arg(long, value_name = "SCHEMA", hide = true)]
    pub mem_bw_schema: Option<String>,
    /// CPUs of the host
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes of the host
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// Most processes and threads
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    /// Weight of block I/O, 10 to 1000
    #[arg(long, value_name = "N")]
    pub blkio_weight: Option<u16>,
    /// Id of the container
    pub id: ContainerId,
}
