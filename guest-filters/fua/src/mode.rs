//! What each mode does with FUA and flush.

/// The modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// FUA is not offered.
    None,
    /// The host carries out FUA by a flush.
    Emulate,
    /// FUA is offered and goes down.
    Native,
    /// Every write is durable when it returns, and a flush does nothing.
    Force,
    /// Nothing is changed.
    Pass,
    /// FUA and flush are accepted and do nothing.
    Discard,
}

/// What a layer offers of FUA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fua {
    None,
    Emulate,
    Native,
}

/// What a layer offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Whether it can be flushed.
    pub flush: bool,
    pub fua: Fua,
}

/// What a write is sent down with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// With FUA if the client asked for it.
    AsAsked,
    /// Always with FUA.
    Durable,
    /// Never with FUA.
    NotDurable,
}

impl Mode {
    /// The name in the parameter.
    pub fn name(self) -> &'static str {
        match self {
            Mode::None => "none",
            Mode::Emulate => "emulate",
            Mode::Native => "native",
            Mode::Force => "force",
            Mode::Pass => "pass",
            Mode::Discard => "discard",
        }
    }

    /// What the filter offers over a layer that can be written.
    ///
    /// # Errors
    /// One line for the log: the mode needs what the layer below does not have.
    pub fn offer(self, below: Offer) -> Result<Offer, String> {
        let lacks = |what: &str| Err(format!("fuamode={}: the layer below has no {what}", self.name()));
        match self {
            Mode::Emulate if !below.flush => lacks("flush"),
            Mode::Native | Mode::Force if below.fua == Fua::None => lacks("FUA"),
            Mode::None => Ok(Offer { fua: Fua::None, ..below }),
            Mode::Emulate => Ok(Offer { fua: Fua::Emulate, ..below }),
            Mode::Native => Ok(Offer { fua: Fua::Native, ..below }),
            Mode::Pass => Ok(below),
            Mode::Force | Mode::Discard => Ok(Offer { flush: true, fua: Fua::Native }),
        }
    }

    /// What writes are sent down with.
    pub fn writes(self) -> Writes {
        match self {
            Mode::None | Mode::Emulate | Mode::Native | Mode::Pass => Writes::AsAsked,
            Mode::Force => Writes::Durable,
            Mode::Discard => Writes::NotDurable,
        }
    }

    /// Whether a flush goes down.
    pub fn flushes(self) -> bool {
        !matches!(self, Mode::Force | Mode::Discard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Offer = Offer { flush: false, fua: Fua::None };
    const FLUSH: Offer = Offer { flush: true, fua: Fua::Emulate };
    const FUA: Offer = Offer { flush: true, fua: Fua::Native };

    #[test]
    fn each_mode_offers_what_it_says() {
        for (mode, over_flush, over_fua) in [
            (Mode::None, Fua::None, Fua::None),
            (Mode::Emulate, Fua::Emulate, Fua::Emulate),
            (Mode::Native, Fua::Native, Fua::Native),
            (Mode::Force, Fua::Native, Fua::Native),
            (Mode::Pass, Fua::Emulate, Fua::Native),
            (Mode::Discard, Fua::Native, Fua::Native),
        ] {
            assert_eq!(mode.offer(FLUSH), Ok(Offer { flush: true, fua: over_flush }), "{mode:?}");
            assert_eq!(mode.offer(FUA), Ok(Offer { flush: true, fua: over_fua }), "{mode:?}");
        }
    }

    #[test]
    fn a_mode_that_needs_what_the_layer_below_lacks_is_refused() {
        assert_eq!(Mode::Emulate.offer(NOTHING), Err("fuamode=emulate: the layer below has no flush".into()));
        assert_eq!(Mode::Native.offer(NOTHING), Err("fuamode=native: the layer below has no FUA".into()));
        assert_eq!(Mode::Force.offer(NOTHING), Err("fuamode=force: the layer below has no FUA".into()));
        assert_eq!(Mode::None.offer(NOTHING), Ok(NOTHING));
        assert_eq!(Mode::Pass.offer(NOTHING), Ok(NOTHING));
        assert_eq!(Mode::Discard.offer(NOTHING), Ok(FUA));
    }
}
