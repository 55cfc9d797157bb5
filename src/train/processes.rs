//! The processes that train one model together: data parallel, gradients averaged by MPI.
//!
//! Every process holds all weights and computes micro-batches of its own; their gradients are summed on the first process
//! and sent back, so that all take the same step to the last bit. `mpirun` starts the processes, on one host or many,
//! and ends all of them when one dies. All read the run's folder, so it lies on a shared file system; the first one alone
//! writes to it.

#[cfg(feature = "mpi")]
use std::rc::Rc;

#[cfg(feature = "mpi")]
use mpi::traits::{Communicator as _, CommunicatorCollectives as _, Root as _};

use crate::train::optimizer::Gradients;

/// The process itself and those beside it.
#[derive(Clone, Default)]
pub struct Processes {
    #[cfg(feature = "mpi")]
    universe: Option<Rc<Universe>>,
}

impl std::fmt::Debug for Processes {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "process {} of {}", self.rank(), self.count())
    }
}

/// MPI between its start and its end.
///
/// It is not ended by dropping: a process that fails must not wait for the others, which wait for it; `mpirun` sees that
/// it left without a word and ends them.
#[cfg(feature = "mpi")]
struct Universe(Option<mpi::environment::Universe>);

#[cfg(feature = "mpi")]
impl Drop for Universe {
    fn drop(&mut self) {
        std::mem::forget(self.0.take());
    }
}

impl Processes {
    /// One process, which needs nobody.
    #[must_use]
    pub fn alone() -> Self {
        Self::default()
    }

    /// All processes that `mpirun` started; none if MPI was started before.
    #[cfg(feature = "mpi")]
    #[must_use]
    pub fn of_mpirun() -> Option<Self> {
        let (universe, _) = mpi::initialize_with_threading(mpi::Threading::Funneled)?;
        Some(Self {
            universe: Some(Rc::new(Universe(Some(universe)))),
        })
    }

    /// Number of processes.
    #[must_use]
    pub fn count(&self) -> usize {
        #[cfg(feature = "mpi")]
        if let Some(universe) = &self.universe {
            return usize::try_from(universe.world().size()).unwrap_or(1);
        }
        1
    }

    /// This process among them, from 0.
    #[must_use]
    pub fn rank(&self) -> usize {
        #[cfg(feature = "mpi")]
        if let Some(universe) = &self.universe {
            return usize::try_from(universe.world().rank()).unwrap_or(0);
        }
        0
    }

    /// This process among those of its host, from 0: the number of the GPU that it takes.
    #[must_use]
    pub fn rank_on_host(&self) -> usize {
        #[cfg(feature = "mpi")]
        if let Some(universe) = &self.universe {
            let world = universe.world();
            return usize::try_from(world.split_shared(world.rank()).rank()).unwrap_or(0);
        }
        0
    }

    /// Whether this is the process that writes files and says how it goes.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Sums losses and gradients over all processes; all have the same names.
    pub fn sum(&self, loss: &mut f32, gradients: &mut Gradients) {
        #[cfg(feature = "mpi")]
        if let Some(universe) = &self.universe {
            let mut flat: Vec<f32> = vec![*loss];
            flat.extend(gradients.values().flatten());
            universe.sum(&mut flat);
            *loss = flat[0];
            let mut rest = &flat[1..];
            for values in gradients.values_mut() {
                let (own, after) = rest.split_at(values.len());
                values.copy_from_slice(own);
                rest = after;
            }
        }
        #[cfg(not(feature = "mpi"))]
        let _ = (loss, gradients);
    }

    /// Waits until all processes are here.
    pub fn meet(&self) {
        #[cfg(feature = "mpi")]
        if let Some(universe) = &self.universe {
            universe.world().barrier();
        }
    }

    /// Ends MPI, once all processes are done.
    pub fn finish(self) {
        #[cfg(feature = "mpi")]
        if let Some(mut universe) = self.universe.and_then(Rc::into_inner) {
            drop(universe.0.take());
        }
    }
}

#[cfg(feature = "mpi")]
impl Universe {
    fn world(&self) -> mpi::topology::SimpleCommunicator {
        self.0.as_ref().expect("the end of MPI consumes it").world()
    }

    /// Sums `values` over all processes; each then has the sum that the first one computed.
    fn sum(&self, values: &mut [f32]) {
        let world = self.world();
        let root = world.process_at_rank(0);
        if world.rank() == 0 {
            let own = values.to_vec();
            root.reduce_into_root(&own, values, mpi::collective::SystemOperation::sum());
        } else {
            root.reduce_into(&*values, mpi::collective::SystemOperation::sum());
        }
        root.broadcast_into(values);
    }
}
