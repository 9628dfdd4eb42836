//! The smallest guest that there is: an ELF with a PVH entry that says one line on the serial port and halts. How long it
//! takes from the execution of QEMU to that line is what machine and firmware cost before any kernel.

/// Where it is loaded, as kernels are.
const ADDRESS: u64 = 0x10_0000;
/// Of the ELF header and of one program header.
const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
/// XEN_ELFNOTE_PHYS32_ENTRY, by which a loader finds the entry (include/xen/interface/elfnote.h of the kernel).
const PHYS32_ENTRY: u32 = 18;

/// 32-bit code: each byte of `\n!\n` to port 0x3f8, then `hlt` for ever.
const CODE: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'\n', 0xee, // mov al, '\n'; out dx, al
    0xb0, b'!', 0xee, // mov al, '!'; out dx, al
    0xb0, b'\n', 0xee, // mov al, '\n'; out dx, al
    0xf4, 0xeb, 0xfd, // hlt; jmp to it
];

/// The file.
pub fn elf() -> Vec<u8> {
    let note = note();
    let note_at = HEADER + 2 * PROGRAM_HEADER;
    let code_at = note_at + note.len() as u64;
    let mut file = Vec::new();
    // 64-bit, little-endian, version 1; an executable for x86-64, version 1.
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    // Entry, program headers, no section headers.
    file.extend([ADDRESS + code_at, HEADER, 0].map(u64::to_le_bytes).concat());
    // No flags; sizes of the two headers; two program headers; nothing of sections.
    file.extend([0; 4]);
    file.extend([64_u16, 56, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
    let whole = code_at + CODE.len() as u64;
    // PT_LOAD, readable and executable: all of the file. PT_NOTE: the note in it.
    file.extend(program_header([1, 5], [0, whole]));
    file.extend(program_header([4, 4], [note_at, note.len() as u64]));
    file.extend(note);
    file.extend(CODE);
    file
}

fn program_header(kind_and_flags: [u32; 2], [offset, size]: [u64; 2]) -> Vec<u8> {
    let address = ADDRESS + offset;
    let mut header = kind_and_flags.map(u32::to_le_bytes).concat();
    // Offset, virtual and physical address, size in the file and in memory, alignment.
    header.extend([offset, address, address, size, size, 4].map(u64::to_le_bytes).concat());
    header
}

fn note() -> Vec<u8> {
    const NAME: &[u8] = b"Xen\0";
    let code_at = HEADER + 2 * PROGRAM_HEADER + 12 + NAME.len() as u64 + 8;
    let mut note = [NAME.len() as u32, 8, PHYS32_ENTRY].map(u32::to_le_bytes).concat();
    note.extend(NAME);
    note.extend((ADDRESS + code_at).to_le_bytes());
    note
}

#[cfg(test)]
mod tests {
    use super::{ADDRESS, CODE, elf};

    #[test]
    fn the_note_points_at_the_code() {
        let file = elf();
        let note = file.windows(4).position(|bytes| bytes == b"Xen\0").unwrap();
        let entry = u64::from_le_bytes(file[note + 4..note + 12].try_into().unwrap());
        let at = usize::try_from(entry - ADDRESS).unwrap();
        assert_eq!(&file[at..], CODE);
        assert_eq!(u64::from_le_bytes(file[24..32].try_into().unwrap()), entry);
    }
}
