//! The `vmbus` command. Each subcommand has a file of its own; what they do is in the libraries.
#![forbid(unsafe_code)]

mod bench;
mod demo;
mod events;
mod guest;
mod hvsock;
mod limits;
mod ls;
mod net;
mod policy;
mod root;
mod size;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// A partition bus: VMBus between ordinary Linux processes and virtual machines, without Hyper-V.
#[derive(Parser)]
#[command(version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Arguments {
    /// Say more on standard error; twice for still more. RUST_LOG says it in detail.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  vmbus demo                                            see it work, no privileges needed
  vmbus root --socket bus.sock --disk disk.img,for=a    offer a disk image to guest `a`
  vmbus guest --socket bus.sock --name a --fuse mnt     join as `a`, see the disk as the file mnt/disk
  vmbus ls --socket bus.sock                            guests, devices and channels of a bus
  vmbus root --socket bus.sock --net lan,host=10.0.0.1/24   a network for all guests
  vmbus guest --socket bus.sock --name a --tap tap0     join as `a`, its NIC is the interface tap0
  vmbus bench storage --json                            figures, with what they are compared to";

#[derive(Subcommand)]
enum Command {
    /// Run a root and two guests as processes, move and check data between them, kill one on the way
    Demo(demo::Arguments),
    /// One guest of the demonstration
    #[command(hide = true)]
    DemoGuest(demo::guest::Arguments),
    /// One guest of the demonstration, on the network
    #[command(hide = true)]
    DemoNet(demo::net::Arguments),
    /// Removes the demonstration's directory after it
    #[command(hide = true)]
    DemoJanitor(demo::world::JanitorArguments),
    /// Run a root: offer disks and networks to guests that attach
    Root(root::Arguments),
    /// Join a bus as a guest
    Guest(guest::Arguments),
    /// Check files of policy rules, and replay decisions
    Policy(policy::Arguments),
    /// Networks of a running root: who is there, counts, captures
    Net(net::Arguments),
    /// List guests, devices and channels of a running root
    Ls(ls::Arguments),
    /// Measure rings, doorbells, storage and crowds beside something comparable
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let verbose = arguments.verbose;
    log_to_stderr(verbose);
    let result = match arguments.command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::DemoGuest(arguments) => demo::guest::run(&arguments),
        Command::DemoNet(arguments) => demo::net::run(&arguments),
        Command::DemoJanitor(arguments) => demo::world::clean_up_after(&arguments),
        Command::Root(arguments) => root::run(arguments),
        Command::Guest(arguments) => guest::run(&arguments),
        Command::Policy(arguments) => policy::run(&arguments),
        Command::Net(arguments) => net::run(&arguments),
        Command::Ls(arguments) => ls::run(&arguments, verbose),
        Command::Bench(arguments) => bench::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vmbus: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        3.. => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
}
