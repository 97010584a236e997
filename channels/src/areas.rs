//! Event areas: where signals arrive, one of them shared by all channels that have none of their own.

/// The area that all channels without one of their own share, and that announces messages.
pub(crate) const SHARED: u32 = 0;

/// Which areas of one end of a link are in use.
pub(crate) struct Areas {
    taken: Vec<bool>,
}

impl Areas {
    /// `count` areas, the shared one included.
    pub(crate) fn new(count: u32) -> Self {
        Self { taken: vec![false; count as usize] }
    }

    /// An area that no other channel uses, or the shared one.
    pub(crate) fn take(&mut self) -> u32 {
        let Some(free) = self.taken.iter().skip(1).position(|taken| !taken) else { return SHARED };
        self.taken[free + 1] = true;
        u32::try_from(free + 1).unwrap_or(SHARED)
    }

    /// This area for a channel that had it before, where it is there and free; the shared one otherwise.
    pub(crate) fn take_at(&mut self, area: u32) -> u32 {
        match self.taken.get_mut(area as usize) {
            Some(taken @ false) if area != SHARED => {
                *taken = true;
                area
            }
            Some(_) | None => SHARED,
        }
    }

    /// Takes this area; `false` if it is another channel's or there is none.
    pub(crate) fn take_this(&mut self, area: u32) -> bool {
        let free = self.taken.get_mut(area as usize).filter(|taken| area != SHARED && !**taken);
        free.map(|taken| *taken = true).is_some()
    }

    /// The channel that took `area` needs it no more.
    pub(crate) fn give_back(&mut self, area: u32) {
        if let Some(taken) = self.taken.get_mut(area as usize) {
            *taken = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_area_serves_one_channel_and_the_shared_one_all_others() {
        let mut areas = Areas::new(3);
        assert_eq!([areas.take(), areas.take(), areas.take(), areas.take()], [1, 2, SHARED, SHARED]);
        areas.give_back(1);
        areas.give_back(SHARED);
        areas.give_back(77);
        assert_eq!([areas.take(), areas.take()], [1, SHARED]);
    }
}
