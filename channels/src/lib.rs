//! The partition bus at run time: Root, Guest, Provider, Channel, requests and pipes
