//! `rbdkit:filter/files`.

use std::sync::Arc;

use rbdkit_plugin_api::run_blocking;

use super::phases::NOT_CONFIGURE;
use crate::connection::bindings::host::files::Host;
use crate::connection::import_error::ImportError;
use crate::guest::call::Phase;
use crate::guest::context::Context;

impl Host for Context {
    fn size(&mut self, param: String, nth: u32) -> Result<u64, ImportError> {
        self.allow(NOT_CONFIGURE)?;
        Ok(self.shared.files.size(&param, nth)?)
    }

    fn read(&mut self, param: String, nth: u32, offset: u64, length: u32) -> Result<Vec<u8>, ImportError> {
        self.allow(NOT_CONFIGURE)?;
        Ok(self.shared.files.read(&param, nth, offset, length)?)
    }

    fn append(&mut self, param: String, nth: u32, data: Vec<u8>) -> Result<(), ImportError> {
        self.allow(NOT_CONFIGURE)?;
        Ok(self.shared.files.append(&param, nth, &data)?)
    }

    fn truncate(&mut self, param: String, nth: u32) -> Result<(), ImportError> {
        self.allow(Phase::READY)?;
        Ok(self.shared.files.truncate(&param, nth)?)
    }

    async fn sync(&mut self, param: String, nth: u32) -> Result<(), ImportError> {
        self.allow(NOT_CONFIGURE)?;
        let file = Arc::clone(self.shared.files.appended(&param, nth)?);
        let result = self.wait_for(0, || run_blocking(move || Ok(file.sync_data()?))).await?;
        Ok(self.answer(result)?)
    }

    fn holds(&mut self, param: String, nth: u32) -> Result<bool, ImportError> {
        self.allow(NOT_CONFIGURE)?;
        Ok(self.shared.files.holds(&param, nth)?)
    }
}
