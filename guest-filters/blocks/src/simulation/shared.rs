//! The world behind its lock, and the passing of turns between the clients' threads.

use std::sync::{Condvar, Mutex, MutexGuard};

use super::settings::Settings;
use super::world::World;

pub struct Shared {
    pub settings: Settings,
    world: Mutex<World>,
    /// One for each client.
    wake: Vec<Condvar>,
}

impl Shared {
    pub fn new(settings: Settings) -> Shared {
        let wake = (0..settings.clients).map(|_| Condvar::new()).collect();
        Shared { settings, world: Mutex::new(World::new(&settings)), wake }
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Chooses the client that runs next, and wakes it.
    pub fn pass_turn(&self, world: &mut World) {
        if world.choose() {
            self.wake[world.turn].notify_one();
        } else {
            eprintln!("seed {}: deadlock", self.settings.seed);
            world.stuck = true;
            self.wake.iter().for_each(Condvar::notify_one);
        }
    }

    /// Waits until it is the client's turn.
    pub fn wait_for_turn<'w>(&self, client: usize, mut world: MutexGuard<'w, World>) -> MutexGuard<'w, World> {
        while world.turn != client || world.stuck {
            if world.stuck {
                drop(world);
                panic!("deadlock");
            }
            world = self.wake[client].wait(world).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        world
    }
}
