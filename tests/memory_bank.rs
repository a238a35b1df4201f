//! The memory bank: the ring itself, its saved state, and its entries as further candidates.

mod common;

use common::check::close;
use common::data::{Kind, Matrix, ODD, Rng, TIGHT, pair, to_f64};
use common::{for_each_dtype, is_cuda, on_every_backend};
use simgrad::{
    Backend, BankColumns, BankState, Element, Error, Fallback, Margin, MatRef, MemoryBank, NONE, Normalization, Pick,
    TopKOptions, reference,
};

fn rows(values: &[f32], cols: usize) -> MatRef<'_, f32> {
    MatRef::new(values, values.len() / cols, cols).expect("whole rows")
}

/// A batch of `count` rows of one element, numbered from `first`, which are also their ids.
fn push_numbers(bank: &mut MemoryBank<f32>, first: i64, count: i64) {
    let ids: Vec<i64> = (first..first + count).collect();
    let values: Vec<f32> = ids.iter().map(|&i| i as f32).collect();
    bank.push(rows(&values, 1), &ids).expect("push");
}

#[test]
fn the_ring_is_that_of_one_row_at_a_time() {
    for capacity in [1, 2, 5, 8] {
        for sizes in [vec![1; 12], vec![3, 3, 3], vec![5, 1], vec![8], vec![9, 2], vec![2, 30, 1], vec![0, 4, 0, 17]] {
            let mut bank = MemoryBank::<f32>::new(capacity, 1).expect("bank");
            let (mut slots, mut next, mut pushed) = (Vec::new(), 0, 0);
            for (push, &size) in sizes.iter().enumerate() {
                push_numbers(&mut bank, pushed, size);
                for id in pushed..pushed + size {
                    let entry = (id, push as u64 + 1);
                    if next < slots.len() {
                        slots[next] = entry
                    } else {
                        slots.push(entry)
                    }
                    next = (next + 1) % capacity;
                }
                pushed += size;
                let got: Vec<_> = bank.ids().iter().copied().zip(bank.stamps().iter().copied()).collect();
                assert_eq!(got, slots, "capacity {capacity}, {sizes:?}");
                assert_eq!((bank.cursor(), bank.len()), (next, slots.len()), "capacity {capacity}, {sizes:?}");
                let stored: Vec<i64> = bank.embeddings().data().iter().map(|&v| v as i64).collect();
                assert_eq!(stored, bank.ids());
            }
            assert_eq!(bank.pushes(), sizes.len() as u64);
            bank.clear();
            assert!(bank.is_empty() && bank.cursor() == 0 && bank.capacity() == capacity);
        }
    }
}

#[test]
fn a_restored_bank_goes_on_as_the_saved_one() {
    let mut bank = MemoryBank::<f32>::new(5, 1).expect("bank");
    push_numbers(&mut bank, 0, 3);
    for first in [3, 7, 20] {
        let mut restored = MemoryBank::restore(bank.state().clone()).expect("restore");
        assert_eq!(restored, bank);
        push_numbers(&mut bank, first, 4);
        push_numbers(&mut restored, first, 4);
        assert_eq!(restored.into_state(), *bank.state());
    }
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let option = |result: Result<MemoryBank<f32>, Error>| match result {
        Err(Error::InvalidOption { arg, .. } | Error::ShapeMismatch { arg, .. } | Error::TooLarge { arg, .. }) => arg,
        other => panic!("{other:?}"),
    };
    assert_eq!(option(MemoryBank::new(0, 3)), "capacity");
    assert_eq!(option(MemoryBank::new(1 << 31, 3)), "capacity");
    assert_eq!(option(MemoryBank::new(1 << 30, 1 << 40)), "cols");
    assert_eq!(MemoryBank::<f32>::new(2, 0).map(|_| ()), Err(Error::EmptyDim { op: "MemoryBank::new", arg: "bank" }));

    let mut bank = MemoryBank::<f32>::new(4, 2).expect("bank");
    bank.push(rows(&[1.0, 2.0, 3.0, 4.0], 2), &[7, 8]).expect("push");
    let before = bank.clone();
    let err = bank.push(rows(&[1.0, 2.0, 3.0], 3), &[1]).expect_err("an error");
    assert_eq!(err, Error::ShapeMismatch { op: "MemoryBank::push", arg: "x.cols", expected: 2, got: 3 });
    let err = bank.push(rows(&[1.0, 2.0], 2), &[1, 2]).expect_err("an error");
    assert_eq!(err, Error::ShapeMismatch { op: "MemoryBank::push", arg: "ids", expected: 1, got: 2 });
    assert_eq!(bank, before);

    let refused = |change: &dyn Fn(&mut BankState<f32>)| {
        let mut state = before.state().clone();
        change(&mut state);
        option(MemoryBank::restore(state))
    };
    assert_eq!(refused(&|s| s.cursor = 1), "state.cursor");
    assert_eq!(refused(&|s| s.capacity = 1), "state.ids");
    assert_eq!(refused(&|s| s.capacity = 2), "state.cursor");
    assert_eq!(refused(&|s| s.stamps[1] = 2), "state.stamps");
    assert_eq!(refused(&|s| s.stamps.truncate(1)), "state.stamps");
    assert_eq!(refused(&|s| s.embeddings.truncate(3)), "state.embeddings");
}

#[test]
fn recent_entries_of_the_same_id_are_the_anchor_itself() {
    on_every_backend(|backend| {
        let mut bank = MemoryBank::<f32>::new(4, 1).expect("bank");
        for value in [0.7, 0.8, 0.9] {
            bank.push(rows(&[value], 1), &[5]).expect("push");
        }
        bank.push(rows(&[0.1], 1), &[6]).expect("push");
        let (x, y) = (rows(&[1.0], 1), rows(&[0.5, 0.2], 1));
        let options = TopKOptions { normalization: Normalization::None, ..TopKOptions::hardest(9) };
        let chosen = |id, self_within| {
            let columns = BankColumns { bank: &bank, ids: &[id], self_within };
            let got = backend.mine_top_k_with_bank(x, y, &columns, &options).expect("mine");
            assert_eq!(got.cols.index, vec![NONE; 9].into_iter().chain([0]).chain([NONE; 8]).collect::<Vec<_>>());
            got.rows.of(0).0.to_vec()
        };
        // Columns 0 (the pair) and 1 of the batch, slots 2 to 5 behind them.
        assert_eq!(chosen(5, None), [1, 5]);
        assert_eq!(chosen(5, Some(0)), [4, 3, 2, 1, 5]);
        assert_eq!(chosen(5, Some(2)), [3, 2, 1, 5]);
        assert_eq!(chosen(5, Some(3)), [2, 1, 5]);
        assert_eq!(chosen(5, Some(u64::MAX)), [1, 5]);
        assert_eq!(chosen(6, None), [4, 3, 2, 1]);
    });
}

#[test]
fn a_bank_alone_and_a_bank_without_entries() {
    on_every_backend(|backend| {
        let mut bank = MemoryBank::<f32>::new(300, 1).expect("bank");
        let x = rows(&[1.0, -1.0], 1);
        let options = TopKOptions { normalization: Normalization::None, ..TopKOptions::hardest(2) };
        let chosen = |bank: &MemoryBank<f32>, y| {
            let columns = BankColumns { bank, ids: &[-1, -2], self_within: None };
            backend.mine_top_k_with_bank(x, y, &columns, &options).expect("mine").rows
        };
        let (none, some) = (MatRef::new(&[], 0, 1).expect("no rows"), rows(&[0.5, 0.25], 1));
        assert_eq!(chosen(&bank, none).index, [NONE; 4]);
        assert_eq!(chosen(&bank, some).index, [1, NONE, 0, NONE]);
        push_numbers(&mut bank, 0, 290);
        assert_eq!(chosen(&bank, none).index, [289, 288, 0, 1]);
        assert_eq!(chosen(&bank, some).index, [291, 290, 2, 0]);
        assert_eq!(chosen(&bank, some).survivors, [291, 291]);
    });
}

fn bank_case<T: Element>(backend: &Backend, seed: u64) {
    let mut rng = Rng::new(seed);
    let (n, m, d) = (1 + rng.below(90), rng.below(90), 1 + rng.below(30));
    let capacity = [1, 30, 200][rng.below(3)];
    let (mut x, y) = pair(Kind::Integers, seed, n, m, d);
    x.iter_mut().for_each(|v| *v /= 16.0);
    let (x, y) = (Matrix::<T>::new(&x, n, d, ODD), Matrix::<T>::new(&y, m, d, TIGHT));
    let mut bank = MemoryBank::<T>::new(capacity, d).expect("bank");
    for push in 0..rng.below(5) {
        let count = rng.below(70);
        let (rows, _) = pair(Kind::Integers, seed + 7 * push as u64, count, 0, d);
        let ids: Vec<i64> = (0..count).map(|_| rng.below(20) as i64).collect();
        bank.push(Matrix::<T>::new(&rows, count, d, ODD).view(), &ids).expect("push");
    }
    let ids: Vec<i64> = (0..n).map(|_| rng.below(20) as i64).collect();
    let columns = BankColumns { bank: &bank, ids: &ids, self_within: [None, Some(1), Some(2)][rng.below(3)] };
    let seed = rng.bits();
    let options = TopKOptions {
        normalization: Normalization::None,
        pick: [Pick::Hardest, Pick::Random { seed }, Pick::DistanceWeighted { seed }][rng.below(3)],
        below_positive: [None, Some(Margin::Absolute(0.0))][rng.below(2)],
        fallback: [Fallback::Skip, Fallback::Easiest][rng.below(2)],
        skip: rng.below(4),
        ..TopKOptions::hardest([1, 9, 300][rng.below(3)])
    };
    let got = backend.mine_top_k_with_bank(x.view(), y.view(), &columns, &options).expect("mine");
    let want = reference::mine_top_k_with_bank(x.view(), y.view(), &columns, &options);
    let name = format!("{} {} {n} {m} {d} {} {options:?}", backend.name(), T::DTYPE, bank.len());
    for (got, want) in [(&got.rows, &want.rows), (&got.cols, &want.cols)] {
        assert_eq!(got.survivors, want.survivors, "{name}");
        assert_eq!(got.index, want.index, "{name}");
        close(&name, &to_f64(&got.value), &want.value, |_| 0.0);
    }
}

#[test]
fn entries_are_candidates_behind_those_of_the_batch() {
    on_every_backend(|backend| {
        for seed in 0..if is_cuda(backend) { 3 } else { 60 } {
            for_each_dtype!(backend, bank_case(seed));
        }
    });
}

#[test]
fn a_bank_that_does_not_fit_is_named() {
    on_every_backend(|backend| {
        let bank = MemoryBank::<f32>::new(4, 2).expect("bank");
        let x = rows(&[1.0, 2.0, 3.0], 3);
        let op = "mine_top_k_with_bank";
        let columns = BankColumns { bank: &bank, ids: &[1], self_within: None };
        let refused = |x, columns: &BankColumns<'_, f32>| {
            backend.mine_top_k_with_bank(x, x, columns, &TopKOptions::default()).expect_err("an error")
        };
        assert_eq!(refused(x, &columns), Error::ShapeMismatch { op, arg: "bank.cols", expected: 3, got: 2 });
        let x = rows(&[1.0, 2.0, 3.0, 4.0], 2);
        assert_eq!(refused(x, &columns), Error::ShapeMismatch { op, arg: "bank.ids", expected: 2, got: 1 });
    });
}
