//! Counters of launches, from a driver that counts.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::{child, device, emulated, gpu_required, say};

/// Counters of one launch.
pub struct Launch(Value);

impl Launch {
    pub fn kernel(&self) -> &str {
        self.0["kernel"].as_str().expect("a kernel name")
    }

    /// Along the first axis of the grid.
    pub fn blocks_of_x(&self) -> Option<u64> {
        self.0["grid"][0].as_u64()
    }

    pub fn count(&self, name: &str) -> u64 {
        self.0["counters"][name].as_u64().unwrap_or_else(|| panic!("no counter {name}"))
    }

    pub fn ratio(&self, name: &str) -> f64 {
        self.0["counters"][name].as_f64().unwrap_or_else(|| panic!("no ratio {name}"))
    }

    /// Accesses of local memory.
    pub fn local(&self) -> u64 {
        self.count("inst_load_local") + self.count("inst_store_local")
    }

    fn row(&self) -> String {
        format!(
            "| {} | {} | {} | {} | {:.2} | {:.2} | {:.2} | {} |",
            self.kernel(),
            self.0["grid"].as_array().map_or(0, |g| g.iter().filter_map(Value::as_u64).product::<u64>()),
            self.count("global_unique_bytes_read"),
            self.count("global_unique_bytes_written"),
            self.ratio("global_load_efficiency"),
            self.ratio("shared_load_conflict_ratio"),
            self.ratio("shared_store_conflict_ratio"),
            self.count("tensor_flop_bf16"),
        )
    }
}

/// Runs one test of this binary in a process of its own, on a device of this compute capability, and returns the counters of
/// its launches.
pub fn launches_on(test: &str, capability: &str) -> Vec<Launch> {
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}.{capability}.counters"));
    let _ = fs::remove_file(&file);
    let vars = [
        ("GPUEMU_COUNTERS", file.to_str()),
        ("GPUEMU_CC", Some(capability)),
        // One thread makes the counts of atomics and spins repeatable; the checks are other tests' business.
        ("GPUEMU_THREADS", Some("1")),
        ("GPUEMU_CHECK", Some("mem")),
    ];
    child(test, &vars).expect("test result: ok");
    let text = fs::read_to_string(&file).expect("a file of counters");
    text.lines().map(|line| Launch(serde_json::from_str(line).expect("a line of counters"))).collect()
}

/// Whether there are counters here, given a test that opens a device in a child process; says so if not.
pub fn counted(probe: &str) -> bool {
    if device().is_none() {
        return false;
    }
    let yes = emulated(probe);
    if !yes {
        assert!(!gpu_required() || std::env::var_os("GPUEMU_CHECK").is_none(), "the driver does not count");
        say("note: this driver does not count, the tests of counters are skipped");
    }
    yes
}

/// Prints the launches of an operation on `n` and `n` rows of bf16 as a table.
pub fn print(title: &str, (n, d): (usize, usize), capability: &str, launches: &[Launch]) {
    let rows: Vec<String> = launches.iter().map(Launch::row).collect();
    say(&format!(
        "\n{title}, n = m = {n}, d = {d}, bf16, compute capability {capability}\n\n\
         | kernel | blocks | unique bytes read | unique bytes written | load efficiency | shared load conflicts | \
         shared store conflicts | tensor flop |\n| --- | --: | --: | --: | --: | --: | --: | --: |\n{}",
        rows.join("\n")
    ));
}
