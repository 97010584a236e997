//! Names and their addresses, and a DNS server (RFC 1035) that knows these and no others.

use std::collections::HashMap;
use std::net::Ipv4Addr;

/// The domain that all names are in; names are also known without it.
pub(super) const DOMAIN: &str = "vmbus.internal";
/// Most names that guests may enter; each has an address of the DHCP server's pool.
const LEASED: usize = super::dhcp::POOL as usize;
/// Longest label, RFC 1035, 2.3.4.
const LABEL: usize = 63;
/// Longest name, in the form that is sent.
const NAME: usize = 255;
/// Size of the header before the question.
const HEADER: usize = 12;
/// For how many seconds an answer may be remembered.
const TIME_TO_LIVE: u32 = 10;

const TYPE_A: u16 = 1;
const TYPE_ANY: u16 = 255;
const CLASS_IN: u16 = 1;

/// What the answer says about the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    Fine = 0,
    FormatError = 1,
    NoSuchName = 3,
    NotImplemented = 4,
}

/// Names that resolve.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// By whoever made the host.
    fixed: HashMap<String, Ipv4Addr>,
    /// By guests with their leases.
    leased: HashMap<String, Ipv4Addr>,
}

impl Names {
    /// Enters a name for good.
    pub(super) fn fix(&mut self, name: &str, address: Ipv4Addr) {
        self.fixed.insert(name.trim_end_matches('.').to_ascii_lowercase(), address);
    }

    /// Enters what a guest calls itself, if it is a host name and nobody else has it.
    pub(super) fn lease(&mut self, name: &str, address: Ipv4Addr) {
        let name = name.to_ascii_lowercase();
        let name = name.split('.').next().unwrap_or_default();
        let is_host_name = (1..=LABEL).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let taken = self.leased.get(name).is_some_and(|holder| *holder != address);
        if !is_host_name || taken {
            return;
        }
        self.forget(address);
        if self.leased.len() < LEASED {
            self.leased.insert(name.to_owned(), address);
        }
    }

    /// Takes the name of an address away.
    pub(super) fn forget(&mut self, address: Ipv4Addr) {
        self.leased.retain(|_, holder| *holder != address);
    }

    pub(super) fn find(&self, name: &str) -> Option<Ipv4Addr> {
        let short = name.strip_suffix(DOMAIN).and_then(|name| name.strip_suffix('.'));
        let look = |name: &str| self.fixed.get(name).or_else(|| self.leased.get(name)).copied();
        look(name).or_else(|| short.and_then(look))
    }

    /// Answers what came to port 53; `None` if it is no question at all.
    pub(super) fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        let header: &[u8; HEADER] = query.first_chunk()?;
        let [_, _, flags, ..] = *header;
        if flags & 0x80 != 0 {
            return None;
        }
        let opcode = flags >> 3 & 0xf;
        if opcode != 0 {
            return Some(answer(header, &[], Code::NotImplemented, None));
        }
        let Some(question) = Question::read(query) else {
            return Some(answer(header, &[], Code::FormatError, None));
        };
        let (code, address) = match self.find(&question.name) {
            Some(address) if question.asks_for_address => (Code::Fine, Some(address)),
            // The name is there, and has nothing of this type.
            Some(_) => (Code::Fine, None),
            None => (Code::NoSuchName, None),
        };
        Some(answer(header, question.bytes, code, address))
    }
}

/// The one question of a query.
struct Question<'a> {
    bytes: &'a [u8],
    name: String,
    asks_for_address: bool,
}

impl<'a> Question<'a> {
    fn read(query: &'a [u8]) -> Option<Self> {
        if query.get(4..6)? != [0, 1] {
            return None;
        }
        let mut name = String::new();
        let mut rest = query.get(HEADER..)?;
        loop {
            let (len, after) = rest.split_first()?;
            let len = usize::from(*len);
            if len == 0 {
                rest = after;
                break;
            }
            // This excludes pointers, which a first name has nothing to point to with.
            if len > LABEL || name.len() + len >= NAME {
                return None;
            }
            let label = after.get(..len)?;
            if !name.is_empty() {
                name.push('.');
            }
            name.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
            rest = after.get(len..)?;
        }
        let [a, b, c, d, ..] = *rest else { return None };
        let kind = u16::from_be_bytes([a, b]);
        let class = u16::from_be_bytes([c, d]);
        let end = query.len() - rest.len() + 4;
        let asks_for_address = (kind == TYPE_A || kind == TYPE_ANY) && class == CLASS_IN;
        Some(Self { bytes: query.get(HEADER..end)?, name, asks_for_address })
    }
}

fn answer(query: &[u8; HEADER], question: &[u8], code: Code, address: Option<Ipv4Addr>) -> Vec<u8> {
    let [id_high, id_low, flags, ..] = *query;
    let counts = [0, u8::from(!question.is_empty()), 0, u8::from(address.is_some()), 0, 0, 0, 0];
    let mut bytes = vec![id_high, id_low];
    // An answer, with authority, the opcode and "recursion desired" as they were asked; recursion is not to be had.
    bytes.extend([0x84 | flags & 0x79, code as u8]);
    bytes.extend(counts);
    bytes.extend(question);
    if let Some(address) = address {
        // The name is the one at byte 12.
        bytes.extend([0xc0, 12]);
        bytes.extend(TYPE_A.to_be_bytes());
        bytes.extend(CLASS_IN.to_be_bytes());
        bytes.extend(TIME_TO_LIVE.to_be_bytes());
        bytes.extend([0, 4]);
        bytes.extend(address.octets());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut bytes = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            bytes.push(label.len().try_into().unwrap());
            bytes.extend(label.bytes());
        }
        bytes.push(0);
        bytes.extend(kind.to_be_bytes());
        bytes.extend(CLASS_IN.to_be_bytes());
        bytes
    }

    fn names() -> Names {
        let mut names = Names::default();
        names.fix("host", Ipv4Addr::new(10, 0, 0, 1));
        names.lease("Alice", Ipv4Addr::new(10, 0, 0, 2));
        names
    }

    /// The code and the address of an answer.
    fn resolve(names: &Names, query: &[u8]) -> (u8, Option<[u8; 4]>) {
        let answer = names.answer(query).unwrap();
        assert_eq!(answer[..2], query[..2], "the answer's id");
        assert_eq!(answer[2] & 0x80, 0x80, "an answer");
        let address = (answer[7] == 1).then(|| *answer.last_chunk().unwrap());
        (answer[3] & 0xf, address)
    }

    #[test]
    fn a_guest_is_found_by_the_name_that_it_gave_with_and_without_the_domain() {
        let names = names();
        let alice = Some([10, 0, 0, 2]);
        for name in ["alice", "ALICE", "alice.vmbus.internal"] {
            assert_eq!(resolve(&names, &query(name, TYPE_A)), (0, alice), "{name}");
        }
        assert_eq!(resolve(&names, &query("host", TYPE_A)), (0, Some([10, 0, 0, 1])));
        assert_eq!(resolve(&names, &query("alice", 28)), (0, None), "no IPv6 address, and yet it exists");
        assert_eq!(resolve(&names, &query("mallory", TYPE_A)), (3, None));
        assert_eq!(resolve(&names, &query("alice.example.org", TYPE_A)), (3, None));
    }

    #[test]
    fn a_name_belongs_to_its_first_holder_until_that_one_goes() {
        let (alice, mallory) = (Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 3));
        let mut names = names();
        names.lease("alice", mallory);
        names.lease("host", mallory);
        assert_eq!(names.find("alice"), Some(alice));
        assert_eq!(names.find("host"), Some(Ipv4Addr::new(10, 0, 0, 1)), "a fixed name comes first");
        names.forget(alice);
        names.lease("alice", mallory);
        assert_eq!(names.find("alice"), Some(mallory));
        names.lease("no host name!", mallory);
        assert_eq!(names.find("alice"), Some(mallory), "what is no name changes nothing");
    }

    #[test]
    fn broken_questions_are_told_so_or_ignored() {
        let names = names();
        let whole = query("alice", TYPE_A);
        for len in 0..whole.len() {
            match names.answer(&whole[..len]) {
                None => assert!(len < HEADER),
                Some(answer) => assert_eq!(answer[3] & 0xf, Code::FormatError as u8, "{len} bytes"),
            }
        }
        let mut pointer = whole.clone();
        pointer[HEADER] = 0xc0;
        assert_eq!(resolve(&names, &pointer).0, Code::FormatError as u8);
        let mut update = whole.clone();
        update[2] |= 5 << 3;
        assert_eq!(resolve(&names, &update).0, Code::NotImplemented as u8);
        let mut response = whole;
        response[2] |= 0x80;
        assert_eq!(names.answer(&response), None, "who answers answers would never end");
    }
}
