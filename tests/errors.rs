//! Bad input: the same error on every backend, naming argument and values, and outputs untouched.

mod common;

use common::data::{Matrix, ODD, poison};
use common::{is_cuda, on_every_backend};
use simgrad::cpu::Cpu;
use simgrad::{
    Backend, BatchMut, BatchRef, CosineOptions, DType, Error, GradOptions, Groups, MatMut, MatRef, MineOptions,
    Objective, PairWeight, RecallOptions, StepOptions, TripletWeight, WeightTriples, WriteMode,
};

fn mismatch(op: &'static str, arg: &'static str, expected: usize, got: usize) -> Error {
    Error::ShapeMismatch { op, arg, expected, got }
}

fn empty(op: &'static str) -> Error {
    Error::EmptyDim { op, arg: "x" }
}

/// What the text of an error has to contain.
fn facts(error: &Error) -> Vec<String> {
    match error {
        Error::ShapeMismatch { op, arg, expected, got } | Error::TooShort { op, arg, expected, got } => {
            vec![(*op).to_owned(), format!("`{arg}`"), expected.to_string(), got.to_string()]
        }
        Error::EmptyDim { op, arg } => vec![(*op).to_owned(), format!("`{arg}`"), "0".into(), "1".into()],
        Error::InvalidOption { op, arg, expected, got } | Error::UnsupportedLayout { op, arg, expected, got } => {
            vec![(*op).to_owned(), format!("`{arg}`"), expected.clone(), got.clone()]
        }
        Error::UnsupportedDType { op, arg, expected, got } => {
            vec![(*op).to_owned(), format!("`{arg}`"), (*expected).to_owned(), got.to_string()]
        }
        other => panic!("not an error about an argument: {other:?}"),
    }
}

#[track_caller]
fn names_everything(error: &Error) {
    let text = error.to_string();
    for fact in facts(error) {
        assert!(text.contains(&fact), "`{text}` does not say `{fact}`");
    }
}

type Dims = (usize, usize);

fn input(dims: Dims) -> Matrix<f32> {
    Matrix::new(&vec![0.5; dims.0 * dims.1], dims.0, dims.1, ODD)
}

fn output(dims: Dims) -> Matrix<f32> {
    Matrix::poisoned(dims.0, dims.1, ODD)
}

#[track_caller]
fn refused<R: std::fmt::Debug>(backend: &Backend, got: simgrad::Result<R>, want: &Error, outputs: &[&Matrix<f32>]) {
    let got = got.expect_err(&format!("{}: expected {want}", backend.name()));
    assert_eq!(&got, want, "{}", backend.name());
    names_everything(&got);
    for out in outputs {
        assert!(
            out.same_buffer(&Matrix::poisoned(out.rows, out.cols, ODD)),
            "{}: an output was written",
            backend.name()
        );
    }
}

#[test]
fn rows() {
    let norms: [(Dims, usize, Error); 3] = [
        ((3, 0), 3, empty("row_norms")),
        ((3, 4), 2, mismatch("row_norms", "norms", 3, 2)),
        ((0, 4), 1, mismatch("row_norms", "norms", 0, 1)),
    ];
    let normalize: [(Dims, Dims, Error); 4] = [
        ((3, 0), (3, 0), empty("normalize")),
        ((3, 4), (2, 4), mismatch("normalize", "out.rows", 3, 2)),
        ((3, 4), (3, 5), mismatch("normalize", "out.cols", 4, 5)),
        ((3, 4), (4, 3), mismatch("normalize", "out.rows", 3, 4)),
    ];
    let op = "normalize_backward";
    let backward: [(Dims, Dims, Dims, Error); 6] = [
        ((3, 0), (3, 0), (3, 0), empty(op)),
        ((3, 4), (2, 4), (3, 4), mismatch(op, "grad_unit.rows", 3, 2)),
        ((3, 4), (3, 7), (3, 4), mismatch(op, "grad_unit.cols", 4, 7)),
        ((3, 4), (3, 4), (5, 4), mismatch(op, "dx.rows", 3, 5)),
        ((3, 4), (3, 4), (3, 1), mismatch(op, "dx.cols", 4, 1)),
        ((3, 4), (2, 4), (5, 4), mismatch(op, "grad_unit.rows", 3, 2)),
    ];
    on_every_backend(|backend| {
        for (x, len, want) in &norms {
            let mut out = vec![poison::<f32>(); *len];
            refused(backend, backend.row_norms(input(*x).view(), &mut out), want, &[]);
            assert!(out.iter().all(|v| v.to_bits() == poison::<f32>().to_bits()));
        }
        for (x, out, want) in &normalize {
            let mut out = output(*out);
            let got = backend.normalize(input(*x).view(), out.view_mut());
            refused(backend, got, want, &[&out]);
        }
        for (x, g, dx, want) in &backward {
            for write in [WriteMode::Overwrite, WriteMode::Accumulate] {
                let mut dx = output(*dx);
                let got = backend.normalize_backward(input(*x).view(), input(*g).view(), write, dx.view_mut());
                refused(backend, got, want, &[&dx]);
            }
        }
    });
}

#[test]
fn cosine_matrix() {
    let op = "cosine_matrix";
    // Batch, rows and columns of x, y and out, and the scale.
    type Cube = (usize, usize, usize);
    let scale = |got: &str| Error::InvalidOption {
        op,
        arg: "options.scale",
        expected: "a finite number".into(),
        got: got.into(),
    };
    let cases: [(Cube, Cube, Cube, f64, Error); 9] = [
        ((1, 3, 0), (1, 5, 0), (1, 3, 5), 1.0, empty(op)),
        ((2, 3, 4), (1, 5, 4), (2, 3, 5), 1.0, mismatch(op, "y.batch", 2, 1)),
        ((1, 3, 4), (1, 5, 6), (1, 3, 5), 1.0, mismatch(op, "y.cols", 4, 6)),
        ((2, 3, 4), (2, 5, 4), (3, 3, 5), 1.0, mismatch(op, "out.batch", 2, 3)),
        ((1, 3, 4), (1, 5, 4), (1, 2, 5), 1.0, mismatch(op, "out.rows", 3, 2)),
        ((1, 3, 4), (1, 5, 4), (1, 3, 6), 1.0, mismatch(op, "out.cols", 5, 6)),
        ((1, 3, 4), (1, 5, 4), (1, 3, 5), f64::NAN, scale("NaN")),
        ((1, 3, 4), (1, 5, 4), (1, 3, 5), f64::INFINITY, scale("inf")),
        ((1, 3, 4), (1, 5, 4), (1, 3, 5), f64::NEG_INFINITY, scale("-inf")),
    ];
    let data = [0.5f32; 200];
    on_every_backend(|backend| {
        for (x, y, out, scale, want) in &cases {
            let mut buffer = vec![poison::<f32>(); 200];
            let x = BatchRef::new(&data, x.0, x.1, x.2).expect("x");
            let y = BatchRef::new(&data, y.0, y.1, y.2).expect("y");
            let out = BatchMut::new(&mut buffer, out.0, out.1, out.2).expect("out");
            let options = CosineOptions { scale: *scale, ..CosineOptions::default() };
            refused(backend, backend.cosine_matrix(x, y, &options, out), want, &[]);
            assert!(buffer.iter().all(|v| v.to_bits() == poison::<f32>().to_bits()));
        }
    });
}

#[test]
fn mine_and_ranks() {
    // x, y, ids of rows and of columns, argument, expected, got; 0 columns for an empty dimension.
    type Ids = Option<(usize, usize)>;
    let cases: [(Dims, Dims, Ids, &'static str, usize, usize); 7] = [
        ((3, 0), (5, 0), None, "", 0, 0),
        ((3, 0), (5, 7), Some((1, 1)), "", 0, 0),
        ((3, 4), (5, 6), None, "y.cols", 4, 6),
        ((3, 4), (5, 0), None, "y.cols", 4, 0),
        ((3, 4), (5, 4), Some((2, 5)), "groups.rows", 3, 2),
        ((3, 4), (5, 4), Some((3, 3)), "groups.cols", 5, 3),
        ((3, 4), (5, 4), Some((0, 0)), "groups.rows", 3, 0),
    ];
    let ids = [7i64; 10];
    on_every_backend(|backend| {
        for &(x, y, groups, arg, expected, got) in &cases {
            let want = |op| if arg.is_empty() { empty(op) } else { mismatch(op, arg, expected, got) };
            let groups = groups.map(|(r, c)| Groups { rows: &ids[..r], cols: &ids[..c] });
            let (x, y) = (input(x), input(y));
            let mine = MineOptions { groups, ..MineOptions::default() };
            refused(backend, backend.mine(x.view(), y.view(), &mine), &want("mine"), &[]);
            let ranks = RecallOptions { groups, ..RecallOptions::default() };
            refused(backend, backend.ranks(x.view(), y.view(), &ranks), &want("ranks"), &[]);
        }
    });
}

#[test]
fn goal_step() {
    let op = "goal_step";
    let ids = [7i64; 10];
    type Ids = Option<(usize, usize)>;
    let cases: [(Dims, Dims, Ids, Dims, Dims, Error); 10] = [
        ((3, 0), (3, 0), None, (3, 0), (3, 0), empty(op)),
        ((3, 4), (3, 5), None, (3, 4), (3, 4), mismatch(op, "y.cols", 4, 5)),
        ((3, 4), (2, 4), None, (3, 4), (2, 4), mismatch(op, "y.rows", 3, 2)),
        ((3, 4), (3, 4), Some((2, 3)), (3, 4), (3, 4), mismatch(op, "groups.rows", 3, 2)),
        ((3, 4), (3, 4), Some((3, 4)), (3, 4), (3, 4), mismatch(op, "groups.cols", 3, 4)),
        ((3, 4), (3, 4), None, (2, 4), (3, 4), mismatch(op, "dx.rows", 3, 2)),
        ((3, 4), (3, 4), None, (3, 3), (3, 4), mismatch(op, "dx.cols", 4, 3)),
        ((3, 4), (3, 4), None, (3, 4), (5, 4), mismatch(op, "dy.rows", 3, 5)),
        ((3, 4), (3, 4), None, (3, 4), (3, 6), mismatch(op, "dy.cols", 4, 6)),
        ((0, 4), (0, 4), None, (1, 4), (0, 4), mismatch(op, "dx.rows", 0, 1)),
    ];
    on_every_backend(|backend| {
        for (x, y, groups, dx, dy, want) in &cases {
            let groups = groups.map(|(r, c)| Groups { rows: &ids[..r], cols: &ids[..c] });
            for write in [WriteMode::Overwrite, WriteMode::Accumulate] {
                let options = StepOptions { groups, write, ..StepOptions::default() };
                let objective: Objective = "nca-sig_ms".parse().expect("a name");
                let (x, y, mut dx, mut dy) = (input(*x), input(*y), output(*dx), output(*dy));
                let got = backend.goal_step(x.view(), y.view(), &objective, &options, dx.view_mut(), dy.view_mut());
                refused(backend, got, want, &[&dx, &dy]);
                let got =
                    backend.goal_step_detail(x.view(), y.view(), &objective, &options, dx.view_mut(), dy.view_mut());
                refused(backend, got, want, &[&dx, &dy]);
            }
        }
    });
}

#[test]
fn weighted_grad() {
    let op = "weighted_grad";
    let cases: [(Dims, Dims, [usize; 3], Dims, Dims, Error); 9] = [
        ((3, 0), (5, 0), [1, 1, 1], (3, 0), (5, 0), empty(op)),
        ((3, 4), (5, 3), [1, 1, 1], (3, 4), (5, 4), mismatch(op, "y.cols", 4, 3)),
        ((3, 4), (5, 4), [2, 1, 2], (3, 4), (5, 4), mismatch(op, "w.cols", 2, 1)),
        ((3, 4), (5, 4), [2, 2, 3], (3, 4), (5, 4), mismatch(op, "w.values", 2, 3)),
        ((3, 4), (5, 4), [2, 2, 2], (5, 4), (5, 4), mismatch(op, "dx.rows", 3, 5)),
        ((3, 4), (5, 4), [2, 2, 2], (3, 1), (5, 4), mismatch(op, "dx.cols", 4, 1)),
        ((3, 4), (5, 4), [2, 2, 2], (3, 4), (3, 4), mismatch(op, "dy.rows", 5, 3)),
        ((3, 4), (5, 4), [2, 2, 2], (3, 4), (5, 5), mismatch(op, "dy.cols", 4, 5)),
        ((3, 4), (5, 4), [0, 1, 0], (1, 4), (5, 4), mismatch(op, "w.cols", 0, 1)),
    ];
    on_every_backend(|backend| {
        for (x, y, [rows, cols, values], dx, dy, want) in &cases {
            let (ids, numbers) = ([0i32; 4], [1f32; 4]);
            let w = WeightTriples { rows: &ids[..*rows], cols: &ids[..*cols], values: &numbers[..*values] };
            for write in [WriteMode::Overwrite, WriteMode::Accumulate] {
                let options = GradOptions { write, ..GradOptions::default() };
                let (x, y, mut dx, mut dy) = (input(*x), input(*y), output(*dx), output(*dy));
                let got = backend.weighted_grad(x.view(), y.view(), &w, &options, dx.view_mut(), dy.view_mut());
                refused(backend, got, want, &[&dx, &dy]);
            }
        }
    });
}

#[test]
fn f64_is_refused_on_cuda() {
    on_every_backend(|backend| {
        if !is_cuda(backend) {
            return;
        }
        let x = Matrix::<f64>::new(&[1.0; 12], 3, 4, ODD);
        let mut out = [Matrix::<f64>::poisoned(3, 4, ODD), Matrix::poisoned(3, 4, ODD)];
        let before = out.clone();
        let [dx, dy] = &mut out;
        let objective: Objective = "con-con".parse().expect("a name");
        let w = WeightTriples { rows: &[0], cols: &[1], values: &[1.0] };
        let mut s = Matrix::<f64>::poisoned(3, 3, ODD);
        let errors = [
            backend.row_norms(x.view(), &mut [0.0; 3]).unwrap_err(),
            backend.normalize(x.view(), dx.view_mut()).unwrap_err(),
            backend.normalize_backward(x.view(), x.view(), WriteMode::Overwrite, dx.view_mut()).unwrap_err(),
            backend
                .cosine_matrix(x.view().into(), x.view().into(), &CosineOptions::default(), s.view_mut().into())
                .unwrap_err(),
            backend.mine(x.view(), x.view(), &MineOptions::default()).unwrap_err(),
            backend.ranks(x.view(), x.view(), &RecallOptions::default()).unwrap_err(),
            backend
                .weighted_grad(x.view(), x.view(), &w, &GradOptions::default(), dx.view_mut(), dy.view_mut())
                .unwrap_err(),
            backend
                .goal_step(x.view(), x.view(), &objective, &StepOptions::default(), dx.view_mut(), dy.view_mut())
                .unwrap_err(),
        ];
        for error in errors {
            assert!(matches!(error, Error::UnsupportedDType { got: DType::F64, .. }), "{error:?}");
            names_everything(&error);
        }
        assert!(out.iter().zip(&before).all(|(a, b)| a.same_buffer(b)));
    });
}

#[test]
fn matrices_that_do_not_fit_their_buffer() {
    let data = [0f32; 20];
    let short = |op, expected, got| Error::TooShort { op, arg: "data", expected, got };
    let layout = |op, arg, expected: &str, got: &str| Error::UnsupportedLayout {
        op,
        arg,
        expected: expected.into(),
        got: got.into(),
    };
    let (mat, batch) = ("MatRef::with_stride", "BatchRef::with_strides");
    let cases: Vec<(simgrad::Result<()>, Error)> = vec![
        (MatRef::new(&data, 7, 3).map(drop), short(mat, 21, 20)),
        (MatRef::with_stride(&data, 3, 4, 9).map(drop), short(mat, 22, 20)),
        (MatRef::with_stride(&data, 2, usize::MAX, usize::MAX).map(drop), short(mat, usize::MAX, 20)),
        (
            MatRef::with_stride(&data, 2, 4, 3).map(drop),
            layout(mat, "row_stride", "a row stride of at least 4 elements", "row stride 3"),
        ),
        (MatMut::new(&mut [0f32; 3], 2, 2).map(drop), short("MatMut::with_stride", 4, 3)),
        (BatchRef::new(&data, 3, 2, 4).map(drop), short(batch, 24, 20)),
        (BatchRef::with_strides(&data, usize::MAX, 2, 4, 4, 8).map(drop), short(batch, usize::MAX, 20)),
        (BatchRef::new(&data, 2, usize::MAX, 2).map(drop), short(batch, usize::MAX, 20)),
        (
            BatchMut::with_strides(&mut [0f32; 20], 2, 2, 4, 5, 8).map(drop),
            layout("BatchMut::with_strides", "batch_stride", "a batch stride of at least 9 elements", "batch stride 8"),
        ),
    ];
    for (got, want) in cases {
        let got = got.expect_err("a refusal");
        assert_eq!(got, want);
        names_everything(&got);
    }
    // One row needs no stride, no rows need no buffer.
    assert!(MatRef::with_stride(&data, 1, 20, 0).is_ok());
    assert!(MatRef::with_stride(&data[..0], 0, 20, 20).is_ok());
}

#[test]
fn hyper_parameters_out_of_range() {
    use PairWeight::{Con, LinMs, Sig, SigMs};
    use TripletWeight::{Cir, Hinge, Nca};
    let sig = |alpha, beta, lambda| Sig { alpha, beta, lambda };
    let sig_ms = |alpha, beta, lambda, eps| SigMs { alpha, beta, lambda, eps };
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    let cases = [
        (Nca { tau: nan }, Con, "tau"),
        (Nca { tau: 0.0 }, Con, "tau"),
        (Nca { tau: -1.0 }, Con, "tau"),
        (Nca { tau: inf }, Con, "tau"),
        (Cir { tau: -0.5, offset: 0.5 }, Con, "tau"),
        (Cir { tau: 1.0, offset: nan }, Con, "offset"),
        (Cir { tau: 1.0, offset: inf }, Con, "offset"),
        (Hinge { margin: nan }, Con, "margin"),
        (TripletWeight::Con, sig(nan, 1.0, 0.0), "alpha"),
        (TripletWeight::Con, sig(1.0, -3.0, 0.0), "beta"),
        (TripletWeight::Con, sig(1.0, 1.0, inf), "lambda"),
        (TripletWeight::Con, LinMs { eps: -0.1 }, "eps"),
        (TripletWeight::Con, LinMs { eps: nan }, "eps"),
        (TripletWeight::Con, sig_ms(0.0, 1.0, 0.0, 0.1), "alpha"),
        (TripletWeight::Con, sig_ms(1.0, inf, 0.0, 0.1), "beta"),
        (TripletWeight::Con, sig_ms(1.0, 1.0, nan, 0.1), "lambda"),
        (TripletWeight::Con, sig_ms(1.0, 1.0, 0.0, inf), "eps"),
    ];
    for (triplet, pair, name) in cases {
        let error = Objective::new(triplet, pair).expect_err(name);
        assert!(matches!(&error, Error::InvalidOption { arg, .. } if *arg == name), "{error:?}");
        names_everything(&error);
    }
    for margin in [-inf, -0.5, 0.0, 2.0, inf] {
        assert!(Objective::new(Hinge { margin }, Con).is_ok());
    }
    let unknown = "nca_con".parse::<Objective>().expect_err("no such name");
    assert!(unknown.to_string().contains("`nca_con`"), "{unknown}");
    names_everything(&unknown);
}

#[test]
fn thread_counts() {
    let error = Cpu::with_threads(0).expect_err("no thread");
    assert!(matches!(error, Error::InvalidOption { .. }), "{error:?}");
    names_everything(&error);
    assert!(Cpu::with_threads(3).is_ok());
}

#[test]
fn cuda_is_never_replaced_by_the_cpu() {
    let error = Backend::cuda(99).expect_err("there is no device number 99");
    assert!(!error.to_string().is_empty());
    let (backend, reason) = Backend::auto();
    assert_eq!(backend.name() == "cpu", reason.is_some(), "{reason:?}");
    if common::cuda().is_ok() {
        assert!(matches!(error, Error::DeviceNotFound { ordinal: 99, .. }), "{error:?}");
        assert_eq!(backend.name(), "cuda");
    }
}
