//! Mining of several negatives on device memory: capture, workspace, guards, and the bank on the device.
#![cfg(feature = "cuda")]

mod cuda_support;

use std::sync::Arc;

use cuda_support::{Guarded, capture, device, kernel_nodes, turn};
use cudarc::driver::CudaStream;
use simgrad::cuda::{
    DeviceBankColumns, DeviceElement, DeviceGroups, DeviceMat, DeviceMemoryBank, DeviceSelected, DeviceTopK,
    DeviceTopKOptions, Kernels, mine_top_k, mine_top_k_workspace_bytes,
};
use simgrad::{
    BankColumns, Error, Fallback, Groups, MatRef, MemoryBank, Normalization, Pick, Selected, TopK, TopKOptions,
    reference,
};

/// Multiples of 1/16, whose similarities are exact.
fn sixteenths<T: DeviceElement>(len: usize, seed: u64, unit: f64) -> Vec<T> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        T::from_f64(((state >> 33) % 5) as f64 * unit - 2.0 * unit)
    };
    (0..len).map(|_| next()).collect()
}

/// Outputs of a call between guards.
struct Out {
    k: usize,
    positive: Guarded<f32>,
    index: [Guarded<i32>; 2],
    value: [Guarded<f32>; 2],
    survivors: [Guarded<u32>; 2],
    workspace: Guarded<u8>,
}

impl Out {
    fn new(stream: &Arc<CudaStream>, [n, m]: [usize; 2], k: usize, bytes: usize) -> Self {
        Self {
            k,
            positive: Guarded::poisoned(stream, n.min(m)),
            index: [n, m].map(|len| Guarded::poisoned(stream, len * k)),
            value: [n, m].map(|len| Guarded::poisoned(stream, len * k)),
            survivors: [n, m].map(|len| Guarded::poisoned(stream, len)),
            workspace: Guarded::poisoned(stream, bytes),
        }
    }

    fn enqueue<T: DeviceElement>(
        &mut self,
        (kernels, stream): (&Kernels, &CudaStream),
        x: &DeviceMat<'_, T>,
        y: &DeviceMat<'_, T>,
        options: &DeviceTopKOptions<'_, T>,
    ) -> simgrad::Result<()> {
        let ([a, b], [c, d], [e, f]) = (&mut self.index, &mut self.value, &mut self.survivors);
        let mut out = DeviceTopK {
            positive: self.positive.view_mut(),
            rows: DeviceSelected { index: a.view_mut(), value: c.view_mut(), survivors: e.view_mut() },
            cols: DeviceSelected { index: b.view_mut(), value: d.view_mut(), survivors: f.view_mut() },
        };
        mine_top_k(kernels, stream, x, y, options, &mut out, &mut self.workspace.view_mut())
    }

    fn read(&self, stream: &Arc<CudaStream>) -> TopK<f32> {
        let side = |s: usize| Selected {
            k: self.k,
            index: self.index[s].read(stream, "index"),
            value: self.value[s].read(stream, "value"),
            survivors: self.survivors[s].read(stream, "survivors"),
        };
        self.workspace.read(stream, "workspace");
        TopK { positive: self.positive.read(stream, "positive"), rows: side(0), cols: side(1) }
    }
}

#[track_caller]
fn same(got: &TopK<f32>, want: &TopK<f64>) {
    let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    assert_eq!(wide(&got.positive), want.positive);
    for (got, want) in [(&got.rows, &want.rows), (&got.cols, &want.cols)] {
        assert_eq!(got.survivors, want.survivors);
        assert_eq!(got.index, want.index);
        assert_eq!(wide(&got.value), want.value);
    }
}

fn case<T: DeviceElement>([n, m, d]: [usize; 3], rules: TopKOptions<'_>, captured: bool) {
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let (x, y) = (sixteenths::<T>(n * d, 1, 0.0625), sixteenths::<T>(m * d, 2, 1.0));
    let old = sixteenths::<T>(90 * d, 3, 1.0);
    let row_ids: Vec<i64> = (0..n as i64).map(|i| i % 7).collect();
    let col_ids: Vec<i64> = (0..m as i64).map(|j| j % 11).collect();
    let (device_x, device_y) = (Guarded::of(&stream, &x), Guarded::of(&stream, &y));
    let (device_rows, device_cols) = (Guarded::of(&stream, &row_ids), Guarded::of(&stream, &col_ids));
    let device_old = Guarded::of(&stream, &old);
    let old_ids: Vec<i64> = (0..90).map(|i| i % 5).collect();
    let device_old_ids = Guarded::of(&stream, &old_ids);

    // The same pushes on the host and on the device, the last one around the end of the ring.
    let mut bank = MemoryBank::<T>::new(130, d).unwrap();
    let mut device_bank = DeviceMemoryBank::<T>::new(&stream, 130, d).unwrap();
    for rows in [90, 0, 60] {
        let part = MatRef::new(&old[..rows * d], rows, d).unwrap();
        bank.push(part, &old_ids[..rows]).unwrap();
        let view = device_old.view();
        let part = DeviceMat::new(view.slice(..rows * d), rows, d).unwrap();
        device_bank.push(kernels, &stream, &part, &device_old_ids.view().slice(..rows)).unwrap();
    }
    assert_eq!(device_bank.state(&stream).unwrap(), *bank.state());
    let device_bank = DeviceMemoryBank::restore(&stream, bank.state()).unwrap();
    assert_eq!(device_bank.state(&stream).unwrap(), *bank.state());
    assert_eq!((device_bank.len(), device_bank.cursor(), device_bank.pushes()), (130, 20, 3));

    let host = TopKOptions { groups: Some(Groups { rows: &row_ids, cols: &col_ids }), ..rules };
    let columns = BankColumns { bank: &bank, ids: &row_ids, self_within: Some(1) };
    let x_view = DeviceMat::new(device_x.view(), n, d).unwrap();
    let y_view = DeviceMat::new(device_y.view(), m, d).unwrap();
    for banked in [false, true] {
        let want = if banked {
            reference::mine_top_k_with_bank(
                MatRef::new(&x, n, d).unwrap(),
                MatRef::new(&y, m, d).unwrap(),
                &columns,
                &host,
            )
        } else {
            reference::mine_top_k(MatRef::new(&x, n, d).unwrap(), MatRef::new(&y, m, d).unwrap(), &host)
        };
        let options = DeviceTopKOptions {
            rules,
            groups: Some(DeviceGroups { rows: device_rows.view(), cols: device_cols.view() }),
            bank: banked.then(|| DeviceBankColumns {
                bank: &device_bank,
                ids: device_rows.view(),
                self_within: Some(1),
            }),
        };
        let entries = banked.then_some(130);
        let bytes = mine_top_k_workspace_bytes(n, m, entries, d, T::DTYPE, &rules).unwrap();
        let mut out = Out::new(&stream, [n, m], rules.k, bytes);
        if captured {
            let graph = capture(&stream, || out.enqueue((kernels, &stream), &x_view, &y_view, &options).unwrap());
            assert!(kernel_nodes(&graph) <= if banked { 7 } else { 5 });
            // Twice: the workspace of the second run holds what the first has left.
            graph.launch().unwrap();
            same(&out.read(&stream), &want);
            graph.launch().unwrap();
        } else {
            out.enqueue((kernels, &stream), &x_view, &y_view, &options).unwrap();
        }
        same(&out.read(&stream), &want);
    }
    context.check_err().unwrap();
}

fn rules(pick: Pick, skip: usize, k: usize) -> TopKOptions<'static> {
    TopKOptions { normalization: Normalization::None, pick, skip, ..TopKOptions::semi_hard(k, Fallback::Easiest) }
}

#[test]
fn a_captured_call_is_kernels_alone_and_can_be_replayed() {
    case::<f32>([150, 200, 12], rules(Pick::Hardest, 2, 9), true);
    case::<half::bf16>([60, 140, 16], rules(Pick::Random { seed: 4 }, 3, 5), true);
}

#[test]
fn rules_agree_with_the_reference_over_several_splits() {
    case::<f32>([270, 300, 8], rules(Pick::DistanceWeighted { seed: 9 }, 0, 20), false);
    case::<half::f16>([300, 130, 8], rules(Pick::Random { seed: 9 }, 40, 300), false);
    case::<half::bf16>([130, 400, 8], TopKOptions { below_positive: None, ..rules(Pick::Hardest, 1000, 24) }, false);
}

/// More tiles than there can be splits, so that lists are gone on with, in the places that fit registers.
#[test]
fn short_lists_agree_with_the_reference_over_several_tiles_of_a_split() {
    case::<half::bf16>([2200, 150, 8], rules(Pick::Hardest, 1, 3), false);
    case::<half::f16>([150, 2200, 8], TopKOptions { below_positive: None, ..rules(Pick::Hardest, 0, 8) }, false);
    case::<f32>([2100, 140, 4], TopKOptions { window: Some((-0.25, 0.5)), ..rules(Pick::Hardest, 0, 1) }, false);
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_enqueued() {
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let x = Guarded::of(&stream, &[1.0f32; 12]);
    let mat = || DeviceMat::new(x.view(), 3, 4).unwrap();
    let rules = TopKOptions::hardest(2);
    let bytes = mine_top_k_workspace_bytes(3, 3, None, 4, simgrad::DType::F32, &rules).unwrap();
    let endless = simgrad::TopKOptions { skip: usize::MAX, ..rules };
    let refused = mine_top_k_workspace_bytes(3, 3, Some(9), 4, simgrad::DType::F32, &endless);
    assert!(matches!(refused, Err(simgrad::Error::InvalidOption { arg: "options.skip", .. })), "{refused:?}");
    let refused = |out: &mut Out, rules| {
        let options = DeviceTopKOptions { rules, ..DeviceTopKOptions::default() };
        let error = out.enqueue((kernels, &stream), &mat(), &mat(), &options).expect_err("an error");
        assert!(out.index[0].read(&stream, "index").iter().all(|&i| i == -1), "{error}: something was written");
        error
    };
    let mut out = Out::new(&stream, [3, 3], 2, bytes);
    assert!(matches!(
        refused(&mut out, TopKOptions { k: 3, ..rules }),
        Error::TooShort { arg: "rows.index", expected: 9, got: 6, .. } | Error::ShapeMismatch { arg: "rows.index", .. }
    ));
    let groups = Some(Groups { rows: &[1], cols: &[1] });
    let error = refused(&mut out, TopKOptions { groups, ..rules });
    assert!(matches!(error, Error::InvalidOption { arg: "options.rules.groups", .. }), "{error}");
    let error = refused(&mut Out::new(&stream, [3, 3], 2, bytes - 1), rules);
    assert!(error.to_string().contains("workspace"), "{error}");

    let mut bank = DeviceMemoryBank::<f32>::new(&stream, 5, 3).unwrap();
    let ids = Guarded::of(&stream, &[1i64, 2, 3]);
    let error = bank.push(kernels, &stream, &mat(), &ids.view()).expect_err("an error");
    assert!(matches!(error, Error::ShapeMismatch { arg: "x.cols", expected: 3, got: 4, .. }));
    let mut bank = DeviceMemoryBank::<f32>::new(&stream, 5, 4).unwrap();
    let error = bank.push(kernels, &stream, &mat(), &ids.view().slice(..2)).expect_err("an error");
    assert!(matches!(error, Error::ShapeMismatch { arg: "ids", expected: 3, got: 2, .. }));
    assert!(bank.is_empty() && bank.pushes() == 0);
}

fn push_of_wide_rows<T: DeviceElement>(d: usize) {
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    let (rows, stride, ids) = (5, d + 3, [3i64, 1, 4, 1, 5]);
    let data = sixteenths::<T>((rows - 1) * stride + d, 6, 1.0);
    let mut bank = MemoryBank::<T>::new(7, d).unwrap();
    let mut device_bank = DeviceMemoryBank::<T>::new(&stream, 7, d).unwrap();
    let (device_data, device_ids) = (Guarded::of(&stream, &data), Guarded::of(&stream, &ids));
    for _ in 0..2 {
        bank.push(MatRef::with_stride(&data, rows, d, stride).unwrap(), &ids).unwrap();
        let mat = DeviceMat::with_stride(device_data.view(), rows, d, stride).unwrap();
        device_bank.push(kernels, &stream, &mat, &device_ids.view()).unwrap();
        assert_eq!(device_bank.state(&stream).unwrap(), *bank.state());
    }
}

/// Rows with more elements than a warp has lanes, and space between them.
#[test]
fn wide_rows_are_pushed_whole() {
    push_of_wide_rows::<f32>(33);
    push_of_wide_rows::<half::f16>(70);
}

#[test]
fn a_push_of_more_rows_than_slots_keeps_the_last() {
    let Some((context, kernels)) = device() else { return };
    let _turn = turn();
    let stream = context.new_stream().unwrap();
    for (capacity, pushes) in [(4, vec![3usize, 11]), (1, vec![5]), (7, vec![7, 7, 2]), (5, vec![2, 30])] {
        let mut bank = MemoryBank::<half::f16>::new(capacity, 3).unwrap();
        let mut device_bank = DeviceMemoryBank::<half::f16>::new(&stream, capacity, 3).unwrap();
        for (at, rows) in pushes.into_iter().enumerate() {
            let data = sixteenths::<half::f16>(rows * 3, at as u64, 1.0);
            let ids: Vec<i64> = (0..rows as i64).map(|i| i << 40).collect();
            bank.push(MatRef::new(&data, rows, 3).unwrap(), &ids).unwrap();
            let (data, ids) = (Guarded::of(&stream, &data), Guarded::of(&stream, &ids));
            let mat = DeviceMat::new(data.view(), rows, 3).unwrap();
            device_bank.push(kernels, &stream, &mat, &ids.view()).unwrap();
            assert_eq!(device_bank.state(&stream).unwrap(), *bank.state());
        }
    }
}
