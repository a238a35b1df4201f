//! What surrounds the driver calls of one operation: the right context, and the right owner of an error.

use cudarc::driver::{CudaContext, DriverError, result, sys};

use super::driver::failed;
use crate::error::Result;

/// Makes a context current on the calling thread, and restores the one that was current before when dropped.
///
/// cudarc keeps an error that it met in a destructor and returns it from its next, unrelated call. A scope sets such an
/// error aside and puts it back at its end, so that no operation reports what it did not cause.
pub(crate) struct Scope<'a> {
    op: &'static str,
    context: &'a CudaContext,
    /// To restore; `None` if it is the scope's own context.
    previous: Option<sys::CUcontext>,
    earlier: Option<DriverError>,
}

impl<'a> Scope<'a> {
    pub(crate) fn enter(op: &'static str, context: &'a CudaContext) -> Result<Self> {
        let earlier = context.check_err().err();
        let mut scope = Self { op, context, previous: None, earlier };
        let current = result::ctx::get_current().map_err(|e| failed(op, "cuCtxGetCurrent", e))?;
        if current != Some(context.cu_ctx()) {
            // SAFETY: the context is alive, its owner is borrowed.
            unsafe { result::ctx::set_current(context.cu_ctx()) }.map_err(|e| failed(op, "cuCtxSetCurrent", e))?;
            scope.previous = Some(current.unwrap_or(std::ptr::null_mut()));
        }
        Ok(scope)
    }

    /// Reports what cudarc met since the scope began in a call that has no result of its own: the waits that precede
    /// the use of a slice.
    pub(crate) fn check(&self) -> Result<()> {
        self.context.check_err().map_err(|e| failed(self.op, "cuStreamWaitEvent", e))
    }
}

impl Drop for Scope<'_> {
    fn drop(&mut self) {
        if let Some(error) = self.earlier {
            self.context.record_err(Err::<(), _>(error));
        }
        if let Some(previous) = self.previous {
            // SAFETY: null, or a context that was current on this thread when the scope began. If it has been destroyed
            // since, the call fails, and there is nothing to restore.
            let _ = unsafe { result::ctx::set_current(previous) };
        }
    }
}
