//! Phases in which several interfaces may be used.

use crate::guest::call::Phase;

/// O and D: the calls of a connection.
pub(super) const OPEN_DATA: Phase = Phase::OPEN.or(Phase::DATA);

/// R, N, O, D and E: all calls except describe and configure.
pub(super) const NOT_CONFIGURE: Phase = OPEN_DATA.or(Phase::BEFORE).or(Phase::READY).or(Phase::EVENT);
