//! A writer of pcapng files, as Wireshark and tcpdump read them.
//!
//! The format is draft-ietf-opsawg-pcapng; this writes a section header, one interface description per name, enhanced
//! packets with nanoseconds and direction, and interface statistics.

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;
/// Says in which order bytes are written.
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const LINKTYPE_ETHERNET: u16 = 1;
/// "Unknown", of a section's length.
const UNKNOWN_LEN: u64 = u64::MAX;

const OPT_END: u16 = 0;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;
const ISB_IFDROP: u16 = 5;
/// Times in units of 10^-9 seconds.
const NANOSECONDS: u8 = 9;

/// Which way a frame went, as seen by the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Nobody knows.
    Unknown,
    /// The interface received it.
    Inbound,
    /// The interface sent it.
    Outbound,
}

/// One of a file's interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface(u32);

/// Writes one section. Give it a buffered writer, and flush that when readers shall see what there is.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    interfaces: u32,
    /// The block under way, for its length stands before and after it.
    block: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// The writer's.
    pub fn new(out: W) -> io::Result<Self> {
        let mut writer = Self { out, interfaces: 0, block: Vec::new() };
        writer.put(&BYTE_ORDER.to_le_bytes());
        // Version 1.0.
        writer.put(&[1, 0, 0, 0]);
        writer.put(&UNKNOWN_LEN.to_le_bytes());
        writer.option(SHB_USERAPPL, b"vmbus");
        writer.option(OPT_END, &[]);
        writer.finish(SECTION_HEADER)?;
        Ok(writer)
    }

    /// Declares an interface that frames are from; 0 for `longest` if there is no bound.
    ///
    /// # Errors
    /// The writer's.
    pub fn interface(&mut self, name: &str, longest: u32) -> io::Result<Interface> {
        self.put(&LINKTYPE_ETHERNET.to_le_bytes());
        self.put(&[0, 0]);
        self.put(&longest.to_le_bytes());
        self.option(IF_NAME, name.as_bytes());
        self.option(IF_TSRESOL, &[NANOSECONDS]);
        self.option(OPT_END, &[]);
        self.finish(INTERFACE_DESCRIPTION)?;
        let interface = Interface(self.interfaces);
        self.interfaces += 1;
        Ok(interface)
    }

    /// Writes a frame of which `bytes` were kept and `len` were there.
    ///
    /// # Errors
    /// The writer's.
    pub fn frame(
        &mut self,
        interface: Interface,
        time: SystemTime,
        bytes: &[u8],
        len: usize,
        direction: Direction,
    ) -> io::Result<()> {
        self.put(&interface.0.to_le_bytes());
        self.put(&timestamp(time));
        self.put(&length(bytes.len())?.to_le_bytes());
        self.put(&length(len)?.to_le_bytes());
        self.put_padded(bytes);
        let flags: u32 = match direction {
            Direction::Unknown => 0,
            Direction::Inbound => 1,
            Direction::Outbound => 2,
        };
        if flags != 0 {
            self.option(EPB_FLAGS, &flags.to_le_bytes());
            self.option(OPT_END, &[]);
        }
        self.finish(ENHANCED_PACKET)
    }

    /// Says how many frames of an interface were not written, as they came too fast.
    ///
    /// # Errors
    /// The writer's.
    pub fn dropped(&mut self, interface: Interface, time: SystemTime, frames: u64) -> io::Result<()> {
        self.put(&interface.0.to_le_bytes());
        self.put(&timestamp(time));
        self.option(ISB_IFDROP, &frames.to_le_bytes());
        self.option(OPT_END, &[]);
        self.finish(INTERFACE_STATISTICS)
    }

    /// What it writes to.
    pub fn inner(&self) -> &W {
        &self.out
    }

    /// Makes what was written visible to readers.
    ///
    /// # Errors
    /// The writer's.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn put(&mut self, bytes: &[u8]) {
        self.block.extend_from_slice(bytes);
    }

    fn put_padded(&mut self, bytes: &[u8]) {
        self.put(bytes);
        self.block.resize(self.block.len().next_multiple_of(4), 0);
    }

    fn option(&mut self, code: u16, value: &[u8]) {
        // Names are cut rather than refused.
        let value = value.get(..usize::from(u16::MAX)).unwrap_or(value);
        self.put(&code.to_le_bytes());
        self.put(&u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes());
        self.put_padded(value);
    }

    /// Writes the block under way with its type and its length on both sides.
    fn finish(&mut self, kind: u32) -> io::Result<()> {
        let len = length(self.block.len() + 12)?.to_le_bytes();
        self.out.write_all(&kind.to_le_bytes())?;
        self.out.write_all(&len)?;
        self.out.write_all(&self.block)?;
        self.out.write_all(&len)?;
        self.block.clear();
        Ok(())
    }
}

/// Nanoseconds since 1970, the higher half first.
fn timestamp(time: SystemTime) -> [u8; 8] {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let [a, b, c, d, e, f, g, h] = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX).to_le_bytes();
    [e, f, g, h, a, b, c, d]
}

fn length(len: usize) -> io::Result<u32> {
    u32::try_from(len).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_blocks_of_the_format_byte_for_byte() {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes).unwrap();
        let nic = writer.interface("nic", 0).unwrap();
        let time = UNIX_EPOCH + Duration::from_nanos(0x0000_0001_0203_0405);
        writer.frame(nic, time, &[0xaa; 5], 60, Direction::Outbound).unwrap();
        writer.dropped(nic, time, 7).unwrap();
        writer.flush().unwrap();
        let expected: &[&[u8]] = &[
            // The section: type, length, byte order, version, unknown length, option "vmbus", end.
            &[0x0a, 0x0d, 0x0d, 0x0a, 44, 0, 0, 0, 0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0],
            &[0xff; 8],
            &[4, 0, 5, 0, b'v', b'm', b'b', b'u', b's', 0, 0, 0, 0, 0, 0, 0, 44, 0, 0, 0],
            // The interface: Ethernet, no bound, its name, nanoseconds.
            &[1, 0, 0, 0, 40, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
            &[2, 0, 3, 0, b'n', b'i', b'c', 0, 9, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0, 40, 0, 0, 0],
            // The packet: interface, time, lengths, 5 bytes and padding, outbound.
            &[6, 0, 0, 0, 52, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 5, 4, 3, 2, 5, 0, 0, 0, 60, 0, 0, 0],
            &[0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0, 0, 0, 2, 0, 4, 0, 2, 0, 0, 0, 0, 0, 0, 0, 52, 0, 0, 0],
            // The statistics: 7 dropped.
            &[5, 0, 0, 0, 40, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 5, 4, 3, 2],
            &[5, 0, 8, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 40, 0, 0, 0],
        ];
        assert_eq!(bytes, expected.concat());
    }
}
