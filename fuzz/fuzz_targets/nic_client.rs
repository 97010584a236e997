#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmbus_fuzz::nic_client::run(bytes));
