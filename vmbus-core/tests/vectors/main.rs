//! The golden bytes of `tests/vectors.json`: each is read and compared field by field, then written again and
//! compared byte by byte. A vector that nobody deals with fails the test.

#![allow(clippy::unwrap_used)]

mod control;
mod network;
mod ring;
mod scsi;
mod storage;
mod synic;

use std::collections::BTreeMap;

/// Checks one vector's bytes in both directions.
type Check = (&'static str, fn(&[u8]));

/// Vectors of protocols that other parts of the bus speak, by the beginning of their name.
const ELSEWHERE: &[(&str, &str)] = &[
    ("RB-", "packets and control page of the ring: the ring crate"),
    ("IC-", "integration services, not spoken yet"),
    ("DM-", "memory balloon, not spoken yet"),
    ("KB-", "keyboard, not spoken yet"),
    ("MS-", "mouse, not spoken yet"),
    ("VD-", "video, not spoken yet"),
];

#[test]
fn every_vector_is_read_and_written() {
    let vectors = vectors();
    let checks: BTreeMap<&str, fn(&[u8])> =
        [synic::CHECKS, control::CHECKS, ring::CHECKS, storage::CHECKS, scsi::CHECKS, network::CHECKS]
            .concat()
            .into_iter()
            .collect();
    for (id, bytes) in &vectors {
        match checks.get(id.as_str()) {
            Some(check) => {
                println!("{id}");
                check(bytes);
            }
            None => assert!(
                ELSEWHERE.iter().any(|(family, _)| id.starts_with(family)),
                "vector {id} is not dealt with: check it, or say in ELSEWHERE who does"
            ),
        }
    }
    for id in checks.keys() {
        assert!(vectors.contains_key(*id), "check of {id}, which is no vector");
    }
}

fn vectors() -> BTreeMap<String, Vec<u8>> {
    let json: BTreeMap<String, String> = serde_json::from_str(include_str!("../vectors.json")).unwrap();
    json.into_iter().map(|(id, hex)| (id, from_hex(&hex))).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.bytes().map(|digit| u8::try_from((digit as char).to_digit(16).unwrap()).unwrap()).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}
