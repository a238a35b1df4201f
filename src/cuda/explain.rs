//! The reasons for the numbers of a plan, for people.

use std::fmt::Write;

use super::plan::{
    GROUP_CLUSTER, GROUP_COLS, MAX_SPLITS, PLANNED_MULTIPROCESSORS, PlanDevice, Scheme, SweepKernel, SweepPlan,
    SweepShape, leaves_half_idle,
};
use crate::dtype::DType;

/// A number of a plan and why it is what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// What it is of.
    pub what: &'static str,
    /// The number.
    pub value: String,
    /// Why.
    pub why: String,
}

pub(super) fn reason(what: &'static str, value: impl ToString, why: impl Into<String>) -> Reason {
    Reason { what, value: value.to_string(), why: why.into() }
}

impl PlanDevice {
    pub(super) fn describe(&self) -> String {
        let (major, minor) = self.compute_capability;
        let code = if self.group_code { "with" } else { "without" };
        format!("compute capability {major}.{minor}, {} multiprocessors, {code} code for sm_90a", self.multiprocessors)
    }
}

fn why_scheme(p: &SweepPlan) -> String {
    let (name, dtype) = (p.kernel.name(), p.shape.dtype);
    let (major, minor) = p.device.compute_capability;
    if p.device.forced == Some(p.scheme) {
        return "forced, not chosen".to_owned();
    }
    match p.scheme {
        Scheme::WarpSlices => format!(
            "f32, of which tiles of 128 x 128 would leave more than half of {PLANNED_MULTIPROCESSORS} multiprocessors \
             without a block"
        ),
        Scheme::WarpMma if !matches!(dtype, DType::F16 | DType::Bf16) => {
            format!("{dtype} is summed by multiply-adds of full precision, which wgmma has not")
        }
        Scheme::WarpMma if (major, minor) != (9, 0) => {
            format!("wgmma is of compute capability 9.0, and this is {major}.{minor}")
        }
        Scheme::WarpMma if !p.device.group_code => "the build has no code for sm_90a".to_owned(),
        Scheme::WarpMma => format!("{name} is not written with wgmma"),
        Scheme::GroupMma => "16-bit operands on 9.0: mma.sync reaches two thirds of what wgmma does".to_owned(),
        Scheme::GroupMmaSmall if !p.kernel.schemes().contains(&Scheme::GroupMma) => {
            format!("16-bit operands on 9.0, and {name} is written for tiles of 128 x 64 alone")
        }
        Scheme::GroupMmaSmall => format!(
            "tiles of 128 x 256 would leave more than half of {PLANNED_MULTIPROCESSORS} multiprocessors without a block"
        ),
    }
}

fn why_tile(p: &SweepPlan) -> String {
    match p.scheme {
        Scheme::WarpMma => "8 warps of 64 x 32 elements; 64 operations per byte from L2 in 16 bits".to_owned(),
        Scheme::GroupMma => {
            "two warpgroups of m64n256; 85 operations per byte from L2, 128 with the cluster".to_owned()
        }
        Scheme::WarpSlices => {
            "4 warps of all 64 x 32 elements, each for every fourth step of 32 features: n = m = 512 makes 128 blocks"
                .to_owned()
        }
        Scheme::GroupMmaSmall => "two warpgroups of m64n64: n = m = 1024 makes 128 blocks".to_owned(),
    }
}

fn why_shared(p: &SweepPlan) -> String {
    let stage = (p.tile_rows + p.tile_cols) * 128;
    let rest = p.shared_bytes as usize - p.stages as usize * stage;
    match p.scheme {
        Scheme::WarpMma => {
            format!("{} stages of {stage}; all that 8.6 gives a block, and twice in what 9.0 has", p.stages)
        }
        Scheme::WarpSlices => format!(
            "{} stages of {stage}, three of half a step for each warp, and {rest} in which warps pass sums on",
            p.stages
        ),
        _ => format!("{} stages of {stage} and {rest} for partial results and barriers, of 232448", p.stages),
    }
}

fn why_parts(p: &SweepPlan, extent: usize, tile: usize) -> String {
    let tiles = extent.div_ceil(tile);
    match p.scheme {
        Scheme::GroupMma => format!(
            "{tiles} units of {tile}; the fewest parts with which clusters of two finish first on \
             {PLANNED_MULTIPROCESSORS} multiprocessors, a constant: not the device's number"
        ),
        _ => format!("{tiles} tiles of {tile} as evenly as they go, at most {MAX_SPLITS}; from the shape alone"),
    }
}

fn why_grid(p: &SweepPlan) -> String {
    if p.kernel == SweepKernel::CosineMatrix {
        return format!(
            "blocks that stay, {} to each of {} multiprocessors; no bit depends on it",
            p.blocks_per_multiprocessor(),
            p.device.multiprocessors
        );
    }
    let efficiency = p.tail_efficiency(PLANNED_MULTIPROCESSORS as u32);
    let large = matches!(p.scheme, Scheme::WarpMma | Scheme::GroupMma);
    let small =
        if large && leaves_half_idle(p.shape.n, p.shape.m, GROUP_COLS) { "; too few tiles for the device" } else { "" };
    format!(
        "a block per part of the columns and of the rows; keeps {PLANNED_MULTIPROCESSORS} multiprocessors {:.0} % busy{small}",
        100.0 * efficiency
    )
}

impl SweepPlan {
    /// Every number of the plan, with the reason for it.
    pub fn reasons(&self) -> Vec<Reason> {
        let mut all = vec![
            reason("scheme", format!("{:?}", self.scheme), why_scheme(self)),
            reason("tile", format!("{} x {}", self.tile_rows, self.tile_cols), why_tile(self)),
            reason(
                "cluster",
                self.cluster,
                match self.scheme {
                    Scheme::GroupMma => "two blocks below each other: each loads half of the columns' operand for both",
                    Scheme::GroupMmaSmall => "blocks are independent: they are on their way sooner",
                    Scheme::WarpMma | Scheme::WarpSlices => "8.x has none",
                },
            ),
            reason(
                "threads",
                self.threads,
                match self.scheme {
                    Scheme::WarpMma => "8 warps that load and multiply",
                    Scheme::WarpSlices => "4 warps that load and multiply, each for itself",
                    _ => "two warpgroups that multiply, one that loads",
                },
            ),
            reason("shared bytes", self.shared_bytes, why_shared(self)),
            reason(
                "stages",
                self.stages,
                match self.scheme {
                    Scheme::WarpMma => "two in flight, one in use",
                    Scheme::WarpSlices => "two in flight, one in use, of every warp",
                    Scheme::GroupMma => "as many as fit; the first two fly while the epilogue of the tile before runs",
                    Scheme::GroupMmaSmall => "all of a tile's loads are under way at once up to d = 384",
                },
            ),
        ];
        if self.kernel != SweepKernel::CosineMatrix {
            let SweepShape { n, m, .. } = self.shape;
            let unit = self.tile_rows * self.cluster;
            let doubled = if self.cluster == GROUP_CLUSTER { "; two blocks for each part" } else { "" };
            all.push(reason("row splits", self.splits.rows, why_parts(self, n, unit) + doubled));
            all.push(reason("column splits", self.splits.cols, why_parts(self, m, self.tile_cols)));
        }
        all.push(reason(
            "band",
            self.band,
            match self.band {
                1 => "columns innermost: a row's state changes hands once per row of tiles",
                _ => "tiles in flight at one time share their operands in L2",
            },
        ));
        all.push(reason("grid", format!("{} x {}", self.grid.0, self.grid.1), why_grid(self)));
        all
    }

    /// The plan as text: what it is for, and a line for every number with the reason for it.
    pub fn explain(&self) -> String {
        let SweepShape { batch, n, m, d, dtype } = self.shape;
        let times = if batch > 1 { format!("{batch} x ") } else { String::new() };
        let device = self.device.describe();
        let mut text = format!("{} of {times}({n}, {d}) x ({m}, {d}) in {dtype}, {device}\n", self.kernel.name());
        self.write_reasons(&mut text, "  ");
        text
    }

    pub(super) fn write_reasons(&self, text: &mut String, indent: &str) {
        for Reason { what, value, why } in self.reasons() {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{indent}{what:<13} {value:<13} {why}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_a_plan_has_a_reason() {
        for kernel in [SweepKernel::CosineMatrix, SweepKernel::Mine] {
            for scheme in [Scheme::WarpMma, Scheme::GroupMma, Scheme::GroupMmaSmall, Scheme::WarpSlices] {
                let shape = SweepShape { batch: 1, n: 1000, m: 5000, d: 512, dtype: DType::Bf16 };
                let plan = SweepPlan::of_scheme(scheme, kernel, shape, PlanDevice::H200);
                let (reasons, text) = (plan.reasons(), plan.explain());
                assert!(reasons.iter().all(|r| !r.value.is_empty() && r.why.len() > 5), "{text}");
                for number in [plan.threads, plan.shared_bytes, plan.stages, plan.grid.0] {
                    assert!(text.contains(&format!(" {number} ")), "{number} is missing in {text}");
                }
                assert_eq!(text.contains("row splits"), kernel == SweepKernel::Mine);
            }
        }
    }

    #[test]
    fn the_reason_for_the_scheme_is_the_one_that_decided() {
        let why = |dtype, device: PlanDevice| {
            let shape = SweepShape { batch: 1, n: 4096, m: 4096, d: 512, dtype };
            why_scheme(&SweepPlan::new(SweepKernel::TopK, shape, device))
        };
        assert!(why(DType::F32, PlanDevice::H200).contains("multiply-adds"));
        assert!(why(DType::Bf16, PlanDevice::A100).contains("8.0"));
        assert!(why(DType::Bf16, PlanDevice { group_code: false, ..PlanDevice::H200 }).contains("no code"));
        assert!(why(DType::Bf16, PlanDevice::H200).contains("alone"));
        assert!(why(DType::Bf16, PlanDevice { forced: Some(Scheme::WarpMma), ..PlanDevice::H200 }).contains("forced"));
    }
}
