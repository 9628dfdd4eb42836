//! What may be typed.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

#[derive(Debug, Parser)]
#[command(name = "xtask", about = "Everything that make does", disable_help_subcommand = true)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Install from Debian what building and testing need, and make the roots that tests boot
    Setup,
    /// Build all programs, the guest image and a kernel into target/kata
    Build(BuildOptions),
    /// Build what is missing and run one container, to see it work
    Run,
    /// Run the tiers of tests
    Test(TestOptions),
    /// Check style: formatting, clippy, tidy, licences
    Lint,
    /// Check what clippy cannot: sizes, layers, names, documents
    Tidy,
    /// Make a guest kernel, or find it in the cache
    Kernel(KernelOptions),
    /// Build the agent and the guest's initrd
    Image,
    /// Install what `build` made
    Install(Place),
    /// Remove what `install` put there
    Uninstall(Place),
    /// Render the Helm chart into the tree
    Chart(ChartOptions),
    /// Measure speed, sizes and memory of what it builds
    Bench(BenchOptions),
}

#[derive(Debug, clap::Args)]
pub struct BuildOptions {
    /// Kernel to put beside the programs; without it, the lean one where it is in the cache, else Debian's
    #[arg(long = "kernel")]
    pub profile: Option<Profile>,
}

#[derive(Debug, clap::Args)]
pub struct KernelOptions {
    #[arg(default_value = "lean")]
    pub profile: Profile,
}

/// The two ways to get a guest kernel; see kernel/README.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// Built from Debian's source with our fragments; no modules
    Lean,
    /// Debian's packaged cloud kernel, its modules in the initrd
    Distro,
}

#[derive(Debug, clap::Args)]
pub struct TestOptions {
    /// Run every repetition that an issue states, not the cut numbers of CI
    #[arg(long)]
    pub full: bool,
    /// Only these tiers
    #[arg(long = "tier", value_name = "TIER")]
    pub tiers: Vec<TierName>,
    /// Only the tier `kvm`: guest tests under KVM, in a nested host; a smoke, or with --full all of them
    #[arg(long)]
    pub kvm: bool,
    /// With --kvm: build nothing of the product, test what was built
    #[arg(long, requires = "kvm")]
    pub prebuilt: bool,
    /// With --kvm: only tests with one of these in their names, smoke or not
    #[arg(value_name = "NAME", requires = "kvm")]
    pub names: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TierName {
    Lint,
    Unit,
    Component,
    Guest,
    Engines,
    Kvm,
}

#[derive(Debug, clap::Args)]
pub struct BenchOptions {
    /// Only these measurements
    #[arg(long = "only", value_name = "MEASUREMENT")]
    pub only: Vec<Measurement>,
    /// Measure under KVM, in the nested host: cold start and memory, if nothing else is named
    #[arg(long)]
    pub kvm: bool,
    /// Build nothing: measure what was built
    #[arg(long)]
    pub prebuilt: bool,
    /// Starts of each kind
    #[arg(long, default_value = "10")]
    pub rounds: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Measurement {
    /// First byte of a container over that of a bare VM
    Cold,
    /// 500 small files, over ext4 on a disk
    Files,
    /// Standard streams over raw vsock
    Streams,
    /// Memory of an idle sandbox, exec
    Idle,
    /// Pods by CRI, over runc's and bare VMs
    Pods,
    /// What a pod's link carries, over ways laid by hand and runc's
    Network,
    /// Sizes of programs
    Sizes,
}

impl Measurement {
    /// As it is typed.
    pub fn word(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

#[derive(Debug, clap::Args)]
pub struct ChartOptions {
    /// Take over the overhead that `bench --only idle` has measured
    #[arg(long)]
    pub measured: bool,
}

#[derive(Debug, clap::Args)]
pub struct Place {
    /// Where it will be used from
    #[arg(long, default_value = "/usr/local")]
    pub prefix: PathBuf,
    /// Put in front of the prefix, for packagers
    #[arg(long, default_value = "")]
    pub destdir: PathBuf,
}
