//! What a process uses.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::tool;

/// Memory in RAM, in bytes.
pub fn resident_bytes(id: u32) -> Result<u64> {
    let kilobytes = match fs::read_to_string(format!("/proc/{id}/status")) {
        Ok(status) => status.lines().find_map(|line| number(line.strip_prefix("VmRSS:")?)),
        Err(_) => number(&tool::output("ps", ["-o", "rss=", "-p", &id.to_string()])?),
    };
    Ok(kilobytes.context("no such process")? * 1024)
}

fn number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// Processor time used so far, in user and kernel mode. Linux only.
pub fn cpu_time(id: u32) -> Result<Duration> {
    let [own, _] = cpu_times(id)?;
    Ok(own)
}

/// The same with that of its children, those that have ended included. Linux only.
pub fn family_cpu_time(id: u32) -> Result<Duration> {
    let [own, ended] = cpu_times(id)?;
    // One that ends in between is counted with its parent the next time.
    let children = children(id).into_iter().filter_map(|child| family_cpu_time(child).ok());
    Ok(own + ended + children.sum::<Duration>())
}

/// What a process used, and what its children did that have ended.
fn cpu_times(id: u32) -> Result<[Duration; 2]> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
    // The name in parentheses may hold anything; user and system ticks are fields 14 and 15, those
    // of children 16 and 17.
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
    let time = |index: usize| {
        let (user, system) =
            ticks(index).zip(ticks(index + 1)).context("unknown format of /proc")?;
        let millis = (user + system) * 1000 / rustix::param::clock_ticks_per_second();
        anyhow::Ok(Duration::from_millis(millis))
    };
    Ok([time(11)?, time(13)?])
}

/// Memory in RAM of a process and its children, in bytes; what they share is counted once. Linux only.
pub fn family_memory(id: u32) -> Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{id}/smaps_rollup"))?;
    let kilobytes = rollup.lines().find_map(|line| number(line.strip_prefix("Pss:")?));
    let children = children(id).into_iter().filter_map(|child| family_memory(child).ok());
    Ok(kilobytes.context("unknown format of /proc")? * 1024 + children.sum::<u64>())
}

/// The command line of a process; nothing if there is none.
pub fn command_line(id: u32) -> Option<String> {
    match fs::read(format!("/proc/{id}/cmdline")) {
        Ok(bytes) => Some(String::from_utf8_lossy(&bytes).replace('\0', " ")),
        Err(_) if cfg!(target_os = "linux") => None,
        Err(_) => tool::output("ps", ["-o", "command=", "-p", &id.to_string()]).ok(),
    }
}

/// Whether SIGSTOP has reached every thread of a process, or it is gone. It takes effect once they
/// are scheduled: on a busy machine a frozen server still answers for a while.
pub(crate) fn stands_still(id: u32) -> bool {
    match fs::read_dir(format!("/proc/{id}/task")) {
        Ok(threads) => threads.flatten().all(|thread| {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            // The state follows the name, which stands in parentheses.
            stat.rsplit(") ").next().is_none_or(|fields| fields.is_empty() || is_still(fields))
        }),
        Err(_) if cfg!(target_os = "linux") => true,
        Err(_) => tool::output("ps", ["-o", "state=", "-p", &id.to_string()])
            .map_or(true, |state| is_still(state.trim())),
    }
}

/// Stopped, or dead.
fn is_still(state: &str) -> bool {
    state.starts_with(['T', 'Z', 'X'])
}

/// The processes whose parent is `id`.
pub fn children(id: u32) -> Vec<u32> {
    match fs::read_to_string(format!("/proc/{id}/task/{id}/children")) {
        Ok(text) => text.split_whitespace().filter_map(|word| word.parse().ok()).collect(),
        Err(_) => children_by_ps(id),
    }
}

fn children_by_ps(id: u32) -> Vec<u32> {
    let table = tool::output("ps", ["-A", "-o", "pid=,ppid="]).unwrap_or_default();
    let pairs = table.lines().filter_map(|line| {
        let mut words = line.split_whitespace().map(str::parse::<u32>);
        Some((words.next()?.ok()?, words.next()?.ok()?))
    });
    pairs.filter(|(_, parent)| *parent == id).map(|(child, _)| child).collect()
}
