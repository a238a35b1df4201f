//! `.npy` files for the tests, written and read without the examples' own code.

use std::path::Path;

/// An element type of a file: its NumPy name and bytes.
pub trait Stored: Copy {
    /// NumPy's type string.
    const DESCR: &'static str;
    /// Little-endian bytes.
    fn bytes(self) -> Vec<u8>;
}

macro_rules! stored {
    ($($t:ty => $descr:literal),*) => {$(
        impl Stored for $t {
            const DESCR: &'static str = $descr;
            fn bytes(self) -> Vec<u8> {
                self.to_le_bytes().to_vec()
            }
        }
    )*};
}
stored!(f32 => "<f4", f64 => "<f8", half::f16 => "<f2", i8 => "|i1", u8 => "|u1", i16 => "<i2", i64 => "<i8", u32 => "<u4");

/// The bytes of a version 1.0 file with this header dictionary.
pub fn file(descr: &str, fortran: &str, shape: &[usize], data: &[u8]) -> Vec<u8> {
    let shape: String = shape.iter().map(|n| format!("{n}, ")).collect();
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': ({shape}), }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((header.len() as u16).to_le_bytes());
    out.extend(header.as_bytes());
    out.extend(data);
    out
}

/// Writes an array.
pub fn save<T: Stored>(path: &Path, shape: &[usize], values: &[T]) {
    assert_eq!(shape.iter().product::<usize>(), values.len());
    let data: Vec<u8> = values.iter().flat_map(|v| v.bytes()).collect();
    std::fs::write(path, file(T::DESCR, "False", shape, &data)).expect("a written array");
}

/// Reads an f32, f64 or i64 array: shape and values.
pub fn load(path: &Path) -> (Vec<usize>, Vec<f64>) {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00", "{}", path.display());
    let length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = std::str::from_utf8(&bytes[10..10 + length]).expect("an ASCII header");
    let after = |text: &str| header.split_once(text).expect("a header field").1;
    let dims = after("'shape': (").split_once(')').expect("a shape").0;
    let shape = dims.split(',').filter_map(|n| n.trim().parse().ok()).collect::<Vec<usize>>();
    let (width, element): (usize, fn(&[u8]) -> f64) = match &after("'descr': '")[..3] {
        "<f4" => (4, |b| f64::from(f32::from_le_bytes(b.try_into().expect("four bytes")))),
        "<f8" => (8, |b| f64::from_le_bytes(b.try_into().expect("eight bytes"))),
        "<i8" => (8, |b| i64::from_le_bytes(b.try_into().expect("eight bytes")) as f64),
        _ => panic!("{}: {header}", path.display()),
    };
    let values: Vec<f64> = bytes[10 + length..].chunks(width).map(element).collect();
    assert_eq!(shape.iter().product::<usize>(), values.len(), "{}", path.display());
    (shape, values)
}

/// Reproducible numbers in `[-1, 1)`.
pub fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}
