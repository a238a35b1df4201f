//! NumPy `.npy` arrays: reading any numeric type, from memory or mapped, and writing.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use half::f16;
use npyz::WriterBuilder;

use super::{Failure, Outcome};

/// Element type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
    /// Signed integer of so many bytes.
    Int(usize),
    /// Unsigned integer of so many bytes.
    Uint(usize),
}

impl Kind {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
            Self::Int(bytes) | Self::Uint(bytes) => bytes,
        }
    }

    fn of(dtype: &npyz::DType) -> Option<Self> {
        let npyz::DType::Plain(t) = dtype else { return None };
        if t.endianness() == npyz::Endianness::Big {
            return None;
        }
        match (t.type_char(), t.size_field()) {
            (npyz::TypeChar::Float, 2) => Some(Self::F16),
            (npyz::TypeChar::Float, 4) => Some(Self::F32),
            (npyz::TypeChar::Float, 8) => Some(Self::F64),
            (npyz::TypeChar::Int, bytes @ (1 | 2 | 4 | 8)) => Some(Self::Int(bytes as usize)),
            (npyz::TypeChar::Uint, bytes @ (1 | 2 | 4 | 8)) => Some(Self::Uint(bytes as usize)),
            _ => None,
        }
    }

    /// Element `bytes` as `f64`; `bytes` has the size of this type.
    fn decode(self, bytes: &[u8]) -> f64 {
        match self {
            Self::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f64(),
            Self::F32 => f64::from(f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
            Self::F64 => f64::from_bits(little_endian(bytes)),
            Self::Int(_) => sign_extended(bytes) as f64,
            Self::Uint(_) => little_endian(bytes) as f64,
        }
    }
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, &b| value << 8 | u64::from(b))
}

fn sign_extended(bytes: &[u8]) -> i64 {
    let unused = 64 - 8 * bytes.len() as u32;
    ((little_endian(bytes) << unused) as i64) >> unused
}

enum Bytes {
    Read(Vec<u8>),
    Mapped(memmap2::Mmap),
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Read(bytes) => bytes,
            Self::Mapped(map) => map,
        }
    }
}

/// One array in a file, C order.
pub struct Npy {
    path: PathBuf,
    bytes: Bytes,
    offset: usize,
    kind: Kind,
    shape: Vec<usize>,
}

impl Npy {
    /// Reads the whole file.
    pub fn read(path: &Path) -> Outcome<Self> {
        let bytes = fs::read(path).map_err(|e| Failure::file(path, format!("cannot be read: {e}")))?;
        Self::parse(path, Bytes::Read(bytes))
    }

    /// Maps the file into memory, for files that need not fit there.
    pub fn map(path: &Path) -> Outcome<Self> {
        let fail = |e| Failure::file(path, format!("cannot be read: {e}"));
        let file = fs::File::open(path).map_err(fail)?;
        // SAFETY: the map is read only. A program that shortens the file meanwhile could end this one with a bus error;
        // feature files are written once, and reading them whole is what they are too large for.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(fail)?;
        Self::parse(path, Bytes::Mapped(map))
    }

    fn parse(path: &Path, bytes: Bytes) -> Outcome<Self> {
        let mut rest: &[u8] = &bytes;
        let header = npyz::NpyHeader::from_reader(&mut rest)
            .map_err(|e| Failure::file(path, format!("is not a .npy file: {e}")))?;
        let (offset, available) = (bytes.len() - rest.len(), rest.len());
        let kind = Kind::of(&header.dtype()).ok_or_else(|| {
            let expected = "a little-endian real number of at most 8 bytes (<f4, <f2, |u1, |i1, ...)";
            Failure::file(path, format!("has dtype {}, expected {expected}", header.dtype().descr()))
        })?;
        if header.order() == npyz::Order::Fortran && header.shape().len() > 1 {
            return Err(Failure::file(path, "is in Fortran order, expected C order (numpy.ascontiguousarray)"));
        }
        let shape = header.shape().iter().map(|&n| usize::try_from(n)).collect::<Result<Vec<_>, _>>();
        let needed = shape
            .as_ref()
            .ok()
            .and_then(|shape| shape.iter().try_fold(kind.size(), |product, &n| product.checked_mul(n)));
        match (shape, needed) {
            (Ok(shape), Some(needed)) if needed <= available => {
                Ok(Self { path: path.to_owned(), bytes, offset, kind, shape })
            }
            _ => {
                let needed = needed.map_or("more than a file can hold".to_owned(), |n| n.to_string());
                let shape = header.shape();
                Err(Failure::file(path, format!("has {available} bytes of data, its shape {shape:?} needs {needed}")))
            }
        }
    }

    /// Where the array is from.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// Element type.
    pub const fn kind(&self) -> Kind {
        self.kind
    }
    /// Extents, slowest first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Rows and columns of a matrix.
    pub fn matrix_shape(&self) -> Outcome<(usize, usize)> {
        match self.shape[..] {
            [rows, cols] => Ok((rows, cols)),
            _ => Err(Failure::file(&self.path, format!("has shape {:?}, expected 2 axes (rows, columns)", self.shape))),
        }
    }

    /// Length of a vector.
    pub fn vector_len(&self) -> Outcome<usize> {
        match self.shape[..] {
            [len] => Ok(len),
            _ => Err(Failure::file(&self.path, format!("has shape {:?}, expected 1 axis", self.shape))),
        }
    }

    fn elements(&self, first: usize, count: usize) -> std::slice::ChunksExact<'_, u8> {
        let size = self.kind.size();
        self.bytes[self.offset + first * size..][..count * size].chunks_exact(size)
    }

    /// Elements from `first` on, as many as `out` holds.
    ///
    /// # Panics
    /// If the array ends before.
    pub fn read_f32(&self, first: usize, out: &mut [f32]) {
        let elements = self.elements(first, out.len());
        // The wide types first round to f64 (exact for all but 8-byte integers), then to f32.
        for (out, bytes) in out.iter_mut().zip(elements) {
            *out = self.kind.decode(bytes) as f32;
        }
    }

    /// Every element.
    pub fn to_f64(&self) -> Vec<f64> {
        self.elements(0, self.len()).map(|bytes| self.kind.decode(bytes)).collect()
    }

    /// Every element of an integer array.
    pub fn to_i64(&self) -> Outcome<Vec<i64>> {
        let convert: fn(&[u8]) -> Option<i64> = match self.kind {
            Kind::Int(_) => |bytes| Some(sign_extended(bytes)),
            Kind::Uint(_) => |bytes| i64::try_from(little_endian(bytes)).ok(),
            other => return Err(Failure::file(&self.path, format!("has dtype {other:?}, expected an integer type"))),
        };
        let wide = || Failure::file(&self.path, "holds an integer above the largest i64");
        self.elements(0, self.len()).map(|bytes| convert(bytes).ok_or_else(wide)).collect()
    }
}

/// The bytes of a `.npy` file with this array, C order.
pub fn encode<T: npyz::AutoSerialize + Copy>(shape: &[usize], data: &[T]) -> Outcome<Vec<u8>> {
    let shape: Vec<u64> = shape.iter().map(|&n| n as u64).collect();
    let mut bytes = Vec::new();
    let write = |bytes: &mut Vec<u8>| -> std::io::Result<()> {
        let mut writer = npyz::WriteOptions::new().default_dtype().shape(&shape).writer(bytes).begin_nd()?;
        writer.extend(data.iter().copied())?;
        writer.finish()
    };
    write(&mut bytes).map_err(|e| Failure::new(format!("an array of shape {shape:?} cannot be encoded: {e}")))?;
    Ok(bytes)
}
