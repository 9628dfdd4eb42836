//! Kernel modules, for a guest kernel that has not everything built in.

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    path::Path,
};

use rustix::{io::Errno, system::finit_module};

use super::{BootError, During};

/// Names of module files, one a line, each after those that it needs.
const ORDER: &str = "/modules/order";

/// Loads what the initrd lists; most have no list.
pub fn load() -> Result<(), BootError> {
    let order = match fs::read_to_string(ORDER) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        order => order.during(format!("read {ORDER}"))?,
    };
    let command_line =
        fs::read_to_string("/proc/cmdline").during("read the kernel command line")?;
    for name in order.lines().filter(|name| !name.is_empty()) {
        let path = Path::new("/modules").join(name);
        let file = File::open(&path).during(format!("open module {}", path.display()))?;
        let parameters = parameters(name, &command_line);
        let parameters = CString::new(parameters).during("read the kernel command line")?;
        match finit_module(&file, &parameters, 0) {
            // Built in, or for a device that this machine does not have.
            Err(Errno::EXIST | Errno::NODEV | Errno::OPNOTSUPP) => {}
            result => result.during(format!("load module {}", path.display()))?,
        }
    }
    Ok(())
}

/// What the kernel command line says to a module, as `module.parameter=value`: for one that is built in the kernel
/// reads it itself.
fn parameters(file_name: &str, command_line: &str) -> String {
    let module = file_name.split('.').next().unwrap_or_default().replace('-', "_");
    let words = command_line.split_ascii_whitespace();
    let ours = words.filter_map(|word| word.strip_prefix(module.as_str())?.strip_prefix('.'));
    ours.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::parameters;

    #[test]
    fn a_module_gets_its_own_parameters() {
        let line = "quiet dummy.numdummies=0 dummy.x=1 dummy_two.y=2 panic=-1";
        assert_eq!(parameters("dummy.ko", line), "numdummies=0 x=1");
        assert_eq!(parameters("dummy-two.ko", line), "y=2");
        assert_eq!(parameters("overlay.ko", line), "");
    }
}
