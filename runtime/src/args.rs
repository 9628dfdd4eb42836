//! What was typed; what it means is decided by [`crate::commands`].
//!
//! Names and short forms are runc's, because engines type them.

use std::{ffi::OsString, path::PathBuf, str::FromStr, time::Duration};

use clap::{ArgAction, ArgGroup, Args, Parser, Subcommand};
use clap_complete::Shell;

mod exec;
mod line;
mod update;

use kata_store::Reference;

use crate::{id::ContainerId, journal::Format, sandbox_dir::DEFAULT_ROOT};

/// Containers, each in a VM of its own.
#[derive(Debug, Parser)]
#[command(
    name = "kata-runtime",
    version = concat!("version ", env!("CARGO_PKG_VERSION"), "\nspec: 1.2.0"),
    disable_help_subcommand = true,
    disable_version_flag = true,
    args_override_self = true,
    after_help = "Examples:
  kata-runtime check                                   can this host run it, and what to do if not
  kata-runtime run --rootfs ./debian -- uname -a       a command in a root directory
  kata-runtime run -t --rootfs ./debian -- bash        the same with a terminal
  kata-runtime run --image oci:./alpine -- id          a container image, unpacked once
  kata-runtime spec && kata-runtime run web            a bundle: config.json and rootfs/ in this directory
  podman --runtime kata-runtime run --rm debian date   below an engine"
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    /// Print the version
    #[arg(long, short, action = ArgAction::Version)]
    pub version: (),
    #[command(subcommand)]
    pub command: Command,
}

/// What holds for every command; engines put it first.
#[derive(Debug, Args)]
#[command(next_help_heading = "For every command")]
pub struct Global {
    /// Directory that holds the state of containers
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_ROOT)]
    pub root: PathBuf,
    /// File to append warnings and errors to, besides stderr
    #[arg(long, global = true, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Form of the lines in --log, or on stderr; engines read JSON
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub log_format: Format,
    /// Say also what is done, step by step
    #[arg(long, global = true)]
    pub debug: bool,
    /// Directory of the configuration
    #[arg(long, global = true, value_name = "DIR", default_value_os_t = kata_config::directory())]
    pub config: PathBuf,
    /// Accepted for runc's sake: control groups are made where systemd would make them, without it
    #[arg(long, global = true, hide = true)]
    pub systemd_cgroup: bool,
    /// Accepted for runc's sake: whether there is root is seen. `spec` has it without a value
    #[arg(
        long,
        global = true,
        hide = true,
        value_name = "WORD",
        num_args = 0..=1,
        default_missing_value = "true"
    )]
    pub rootless: Option<String>,
    /// Accepted for runc's sake: nothing uses it
    #[arg(long, global = true, hide = true, value_name = "FILE")]
    pub criu: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a container and wait for its end; the exit code is its own
    Run(Box<Run>),
    /// Make a container of a bundle, without starting it
    Create(Create),
    /// Start a container that was created
    Start(OnlyId),
    /// Print the state of a container as JSON
    State(OnlyId),
    /// Send a signal to a container
    Kill(Kill),
    /// Remove a container that has ended
    Delete(Delete),
    /// Run another process in a running container
    Exec(Box<Exec>),
    /// List the containers of this root
    List(List),
    /// Show the processes of a container
    Ps(Ps),
    /// Show what a container uses, every few seconds or once, and how it ends: a JSON object a line
    Events(Events),
    /// Change the limits of a container
    Update(Box<Update>),
    /// Freeze all processes of a container
    Pause(OnlyId),
    /// Let the processes of a paused container go on
    Resume(OnlyId),
    /// Write a config.json to start from
    Spec(Spec),
    /// Say whether this host can run Kata, prove it with a VM, and name the fix if not
    Check(Check),
    /// Make an engine know Kata, or forget it
    Install(Install),
    /// Print versions, paths and the configuration with its sources
    Env(Report),
    /// Remove the layers of images that no container uses
    Prune(Prune),
    /// Say of each field of a bundle's config.json what becomes of it
    Explain(Explain),
    /// Print what makes a shell complete the words of kata-runtime
    #[command(after_help = "Examples:
  source <(kata-runtime completion bash)
  kata-runtime completion fish > ~/.config/fish/completions/kata-runtime.fish")]
    Completion {
        /// Which shell
        shell: Shell,
    },
    /// Write completions and pages for man below a share directory; what an installation does
    #[command(hide = true)]
    Document {
        /// The directory
        share: PathBuf,
    },
    /// Not supported; engines take its help for the ability
    #[command(hide = true, disable_help_flag = true)]
    Checkpoint(Unsupported),
    /// Not supported
    #[command(hide = true, disable_help_flag = true)]
    Restore(Unsupported),
    /// Print what of the OCI runtime spec this runtime can do, as JSON
    Features,
    /// Print the version
    Version,
    /// Print the help of a command
    Help {
        /// The command
        verb: Option<String>,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kata-runtime install --podman --dry-run              what would be written, and where
  kata-runtime install --podman --docker
  kata-runtime install --containerd --to /opt/kata     a copy of this version, beside older ones
  kata-runtime install --docker --uninstall")]
pub struct Install {
    /// For podman and buildah: a drop-in of containers.conf
    #[arg(long)]
    pub podman: bool,
    /// For docker: a key in daemon.json
    #[arg(long)]
    pub docker: bool,
    /// For containerd's CRI: a drop-in, or with version 2 of its configuration a block in config.toml
    #[arg(long)]
    pub containerd: bool,
    /// For CRI-O: a drop-in of crio.conf
    #[arg(long)]
    pub crio: bool,
    /// For k3s: a drop-in, or its template
    #[arg(long)]
    pub k3s: bool,
    /// For RKE2: a drop-in, or its template
    #[arg(long)]
    pub rke2: bool,
    /// Copy this installation to DIR/VERSION, point DIR/current to it, and have engines use that
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
    /// Change nothing, only say what would change
    #[arg(long)]
    pub dry_run: bool,
    /// Take back what was installed
    #[arg(long)]
    pub uninstall: bool,
    /// Directory of the host's configuration
    #[arg(long, value_name = "DIR", default_value = "/etc", hide = true)]
    pub etc: PathBuf,
    /// Where k3s and RKE2 keep what is theirs
    #[arg(long, value_name = "DIR", default_value = "/var/lib/rancher", hide = true)]
    pub rancher: PathBuf,
}

#[derive(Debug, Args)]
pub struct Events {
    /// Time between two, as in 500ms, 5s or 1m30s
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = crate::words::interval)]
    pub interval: Duration,
    /// Show once what the container uses, and exit
    #[arg(long)]
    pub stats: bool,
    /// Id of the container
    pub id: ContainerId,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Layers of images are unpacked once, by run --image, and kept for the next run. They go with this command,
and when there is no room for others."
)]
pub struct Prune {
    /// Directory where layers are kept
    #[arg(long, value_name = "DIR", default_value = kata_store::DEFAULT_PATH)]
    pub store: PathBuf,
}

/// Whatever is typed.
#[derive(Debug, Args)]
pub struct Unsupported {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub words: Vec<OsString>,
}

/// A container and nothing else.
#[derive(Debug, Args)]
pub struct OnlyId {
    /// Id of the container
    pub id: ContainerId,
}

/// What `create` and `run` share.
#[derive(Debug, Args)]
pub struct Creating {
    /// Directory with config.json
    #[arg(long, short, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// Socket that gets the terminal's master
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// File to write the container's pid to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Accepted for runc's sake: the guest's root is pivoted by the agent in every case
    #[arg(long, hide = true)]
    pub no_pivot: bool,
    /// Accepted for runc's sake: the guest has keyrings of its own
    #[arg(long, hide = true)]
    pub no_new_keyring: bool,
    /// Accepted for runc's sake: nothing of the guest becomes a child of this program
    #[arg(long, hide = true)]
    pub no_subreaper: bool,
    /// Not supported: descriptors beyond stderr can't enter a VM
    #[arg(long, value_name = "N", default_value_t = 0, hide = true)]
    pub preserve_fds: u32,
    /// Socket that gets a pidfd of the process that stands for the container
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Options of runc that mean nothing to a VM are taken: --no-pivot, --no-new-keyring, --no-subreaper.
--preserve-fds is refused: descriptors beyond stderr can't enter a VM."
)]
pub struct Create {
    #[command(flatten)]
    pub creating: Creating,
    /// Id of the new container
    pub id: ContainerId,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kata-runtime run --rootfs ./debian -- python3 -c 'print(6*7)'
  kata-runtime run -t --rootfs ./debian --memory 512M -e LANG=C.UTF-8 -- bash
  kata-runtime run --rootfs ./debian -v $PWD:/src:ro --cwd /src -- make test
  kata-runtime run --image oci-archive:web.tar:1.0 -u www-data -- nginx -t
  kata-runtime run --bundle ./web web

Options of runc that mean nothing to a VM are taken: --no-pivot, --no-new-keyring, --no-subreaper.
--preserve-fds is refused: descriptors beyond stderr can't enter a VM.")]
#[command(group = ArgGroup::new("made-up").args(["rootfs", "image"]))]
pub struct Run {
    #[command(flatten)]
    pub creating: Creating,
    /// Do not wait for the end
    #[arg(long, short)]
    pub detach: bool,
    /// Keep the container after its end, until delete
    #[arg(long, conflicts_with = "rm")]
    pub keep: bool,
    /// Root directory to run a command in, instead of a bundle
    #[arg(long, value_name = "DIR", conflicts_with = "bundle")]
    pub rootfs: Option<PathBuf>,
    /// Container image to run, instead of a bundle: oci:DIR, oci-archive:FILE or docker-archive:FILE
    #[arg(long, value_name = "IMAGE[:TAG]", conflicts_with = "bundle")]
    pub image: Option<Reference>,
    /// Id of the container; made up with --rootfs or --image when not given
    pub id: Option<ContainerId>,
    /// Id of the container, as an option
    #[arg(long, value_name = "ID", conflicts_with = "id")]
    pub name: Option<ContainerId>,
    /// Command to run, with --rootfs or --image, which may have one of its own
    #[arg(last = true, value_name = "COMMAND", requires = "made-up")]
    pub command: Vec<String>,
    /// Accepted for docker's sake: without --keep a container in the foreground is removed
    #[arg(long, hide = true, conflicts_with = "detach")]
    pub rm: bool,
    /// Accepted for docker's sake: standard input is always the container's
    #[arg(long, short, hide = true)]
    pub interactive: bool,
    #[command(flatten)]
    pub made_up: MadeUp,
    #[command(flatten)]
    pub of_image: OfImage,
}

/// What only an image has.
#[derive(Debug, Args)]
#[command(next_help_heading = "With --image")]
pub struct OfImage {
    /// Program that gets the command as its arguments; an empty one takes the image's away
    #[arg(long, value_name = "PROGRAM", requires = "image")]
    pub entrypoint: Option<String>,
    /// Directory where layers are kept
    #[arg(long, value_name = "DIR", default_value = kata_store::DEFAULT_PATH)]
    pub store: PathBuf,
}

/// Details of a spec that is made up for `--rootfs` or `--image`.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "With --rootfs or --image")]
pub struct MadeUp {
    /// Give the command a terminal
    #[arg(long = "tty", short = 't', requires = "made-up")]
    pub terminal: bool,
    /// Set an environment variable
    #[arg(long, short, value_name = "NAME=VALUE", requires = "made-up")]
    pub env: Vec<String>,
    /// Working directory in the container; made when it is not there
    #[arg(long, short = 'w', visible_alias = "workdir", value_name = "DIR", requires = "made-up")]
    pub cwd: Option<String>,
    /// User to run as, by name or number
    #[arg(long, short, value_name = "USER[:GROUP]", requires = "made-up")]
    pub user: Option<String>,
    /// Host name
    #[arg(long, value_name = "NAME", requires = "made-up")]
    pub hostname: Option<String>,
    /// Make the root read-only
    #[arg(long, requires = "made-up")]
    pub read_only: bool,
    /// Memory limit: bytes, or with K to P, as in 1.5G
    #[arg(long, short, value_name = "SIZE", requires = "made-up")]
    pub memory: Option<Bytes>,
    /// CPU time limit, in CPUs, as in 1.5
    #[arg(long, value_name = "NUMBER", requires = "made-up")]
    pub cpus: Option<Cpus>,
    /// Show a host file or directory in the container
    #[arg(long, short, value_name = "SOURCE:TARGET[:ro]", requires = "made-up")]
    pub volume: Vec<VolumeWord>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Signals go by number or name, with or without SIG: 15, TERM, SIGTERM, SIGRTMIN+3."
)]
pub struct Kill {
    /// Signal every process of the container, not only the first
    #[arg(long, short)]
    pub all: bool,
    /// Id of the container
    pub id: ContainerId,
    /// Signal to send
    #[arg(default_value = "SIGTERM")]
    pub signal: String,
}

#[derive(Debug, Args)]
pub struct Delete {
    /// Kill it first if it runs (SIGKILL), and succeed if there is no such container
    #[arg(long, short)]
    pub force: bool,
    /// Id of the container
    pub id: ContainerId,
}

/// Forms of lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListFormat {
    Table,
    Json,
}

impl FromStr for ListFormat {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "table" => Ok(Self::Table),
            "json" => Ok(Self::Json),
            _ => Err(format!("invalid format option {word:?}, table and json are known")),
        }
    }
}

#[derive(Debug, Args)]
pub struct List {
    /// Form of the list: table or json
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub format: ListFormat,
    /// Only ids
    #[arg(long, short)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct Ps {
    /// Form of the list: table or json
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub format: ListFormat,
    /// Id of the container
    pub id: ContainerId,
    /// Options of ps(1), which have no meaning here
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub ps_options: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct Spec {
    /// Directory to write config.json to
    #[arg(long, short, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
}

/// Forms of reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ReportFormat {
    Text,
    Json,
}

#[derive(Debug, Args)]
#[command(after_help = "Answers:
  applied     the guest does it as a host would
  translated  it is honoured another way, which is told
  host only   it is about the host, or means nothing to a VM, which is told
  refused     it can't be honoured; create fails with the same words
  wrong       nobody could apply it; create fails with the same words
  unknown     no field of the specification that this version knows")]
pub struct Explain {
    /// Directory with config.json
    #[arg(value_name = "BUNDLE", default_value = ".")]
    pub bundle: PathBuf,
    /// Form of the report
    #[arg(long, short, value_name = "FORMAT", default_value = "text")]
    pub format: ReportFormat,
}

#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    pub report: Report,
    /// First clean up after sandboxes whose shim is gone, and after unpacking that was interrupted
    #[arg(long)]
    pub repair: bool,
    /// Also whether docker knows Kata, and what docker does without it
    #[arg(long)]
    pub docker: bool,
    /// Directory where the layers of images are kept
    #[arg(long, value_name = "DIR", default_value = kata_store::DEFAULT_PATH)]
    pub store: PathBuf,
}

#[derive(Debug, Args)]
pub struct Report {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

pub use exec::Exec;
pub use line::{Line, read};
pub use update::Update;

pub use crate::words::{Bytes, Cpus, VolumeWord};
