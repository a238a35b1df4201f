//! simgrad for Python's ctypes, as far as `scripts/gpu-report` needs it: a bench tool, not an interface of the crate.
//!
//! PyTorch and simgrad thus run in one process, on one stream, on the same tensors, and can be timed in turns and captured
//! into graphs alike. Every function returns 0 (or an address) on success; otherwise [`simgrad_error`] has the reason. No
//! function unwinds: none calls what panics.

mod call;
mod operation;
mod session;

use std::cell::RefCell;
use std::ffi::{CString, c_char};

use call::{Call, Sizes};
use session::Session;

thread_local! {
    static TEXT: RefCell<CString> = RefCell::default();
}

/// Keeps a text until the next one of this thread.
fn keep(text: &str) -> *const c_char {
    TEXT.with(|kept| {
        *kept.borrow_mut() = CString::new(text.replace('\0', " ")).unwrap_or_default();
        kept.borrow().as_ptr()
    })
}

fn code<E: ToString>(outcome: Result<(), E>) -> i32 {
    match outcome {
        Ok(()) => 0,
        Err(error) => {
            keep(&error.to_string());
            1
        }
    }
}

/// Why the last call of this thread failed. Valid until its next call.
#[unsafe(no_mangle)]
pub extern "C" fn simgrad_error() -> *const c_char {
    TEXT.with(|kept| kept.borrow().as_ptr())
}

/// Bytes of [`Call`], for the caller to compare with those of its own.
#[unsafe(no_mangle)]
pub extern "C" fn simgrad_call_bytes() -> u64 {
    size_of::<Call>() as u64
}

/// Opens device number `ordinal`; null if that fails.
#[unsafe(no_mangle)]
pub extern "C" fn simgrad_open(ordinal: u32) -> *mut Session {
    match Session::open(ordinal as usize) {
        Ok(session) => Box::into_raw(Box::new(session)),
        Err(error) => {
            keep(&error);
            std::ptr::null_mut()
        }
    }
}

/// What [`Session::facts`] says, as JSON. Valid until this thread's next call.
///
/// # Safety
/// `session` came from [`simgrad_open`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn simgrad_facts(session: *const Session) -> *const c_char {
    // SAFETY: by the caller's promise.
    keep(&unsafe { &*session }.facts())
}

/// Bytes of the call's workspace and outputs into `sizes`.
///
/// # Safety
/// `call` and `sizes` point to one of each.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn simgrad_sizes(call: *const Call, sizes: *mut Sizes) -> i32 {
    // SAFETY: by the caller's promise.
    let (call, sizes) = unsafe { (&*call, &mut *sizes) };
    code(call::sizes(call).map(|found| *sizes = found))
}

/// Enqueues the call on `stream`, a `cudaStream_t` of the session's device; returns at once.
///
/// # Safety
/// `session` came from [`simgrad_open`], `call` points to one whose addresses are as [`call::enqueue`] asks, `stream` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn simgrad_enqueue(session: *const Session, call: *const Call, stream: u64) -> i32 {
    // SAFETY: by the caller's promise. A stream is a pointer, and the wrapper does not outlive this call.
    let outcome = unsafe {
        let (session, call) = (&*session, &*call);
        let stream = session.context.wrap_borrowed_stream(stream as *mut _);
        call::enqueue(&session.kernels, &stream, call)
    };
    code(outcome)
}

/// Device memory, for a caller whose tensors are not on the device; 0 if there is none.
///
/// # Safety
/// `session` came from [`simgrad_open`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn simgrad_alloc(session: *const Session, bytes: u64) -> u64 {
    // SAFETY: by the caller's promise.
    match unsafe { &*session }.alloc(bytes as usize) {
        Ok(address) => address,
        Err(error) => {
            keep(&error);
            0
        }
    }
}

/// # Safety
/// `session` came from [`simgrad_open`], `address` from [`simgrad_alloc`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn simgrad_free(session: *const Session, address: u64) -> i32 {
    // SAFETY: by the caller's promise.
    code(unsafe { (*session).free(address) })
}

/// Copies `bytes` from `source` in host memory to `address`.
///
/// # Safety
/// `session` came from [`simgrad_open`]; both have as many bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn simgrad_upload(session: *const Session, address: u64, source: *const u8, bytes: u64) -> i32 {
    // SAFETY: by the caller's promise.
    code(unsafe { (*session).upload(address, std::slice::from_raw_parts(source, bytes as usize)) })
}

/// Copies `bytes` from `address` to `target` in host memory.
///
/// # Safety
/// As [`simgrad_upload`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn simgrad_download(session: *const Session, target: *mut u8, address: u64, bytes: u64) -> i32 {
    // SAFETY: by the caller's promise.
    code(unsafe { (*session).download(std::slice::from_raw_parts_mut(target, bytes as usize), address) })
}

/// Waits for everything on the device.
///
/// # Safety
/// `session` came from [`simgrad_open`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn simgrad_synchronize(session: *const Session) -> i32 {
    // SAFETY: by the caller's promise.
    code(unsafe { &*session }.synchronize())
}
