//! What has an id: what is there, and what is still being made.
//!
//! ```text
//! free ── hold ─► held ── settle ─► taken ── forget ─► free
//!                  └── give up, or settle with nothing ─► free
//! ```
//!
//! What is being made may lose its place to another of its id. So it goes by the holder, not by the id, and is no longer
//! wanted when its place is gone.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Places by id.
#[derive(Debug)]
pub struct Places<T>(Mutex<HashMap<String, Place<T>>>);

#[derive(Debug)]
enum Place<T> {
    Held(Holder),
    Taken(Arc<T>),
}

/// Who has a place for what is being made; the same as no other, whatever its id.
#[derive(Debug, Clone)]
pub struct Holder(Arc<str>);

impl<T> Default for Places<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Place<T> {
    fn taken(&self) -> Option<&Arc<T>> {
        match self {
            Self::Held(_) => None,
            Self::Taken(taken) => Some(taken),
        }
    }

    fn is_held_by(&self, holder: &Holder) -> bool {
        matches!(self, Self::Held(held) if Arc::ptr_eq(&held.0, &holder.0))
    }
}

impl<T> Places<T> {
    /// Takes a place for what is to be made, if it is free.
    pub fn hold(&self, id: &str) -> Option<Holder> {
        match self.lock().entry(id.to_owned()) {
            Entry::Vacant(entry) => {
                let holder = Holder(id.into());
                entry.insert(Place::Held(holder.clone()));
                Some(holder)
            }
            Entry::Occupied(_) => None,
        }
    }

    /// Puts what was made into its place, or gives that up; false when somebody has given it up meanwhile.
    pub fn settle(&self, holder: &Holder, made: Option<&Arc<T>>) -> bool {
        let mut places = self.lock();
        if !places.get(&*holder.0).is_some_and(|place| place.is_held_by(holder)) {
            return false;
        }
        match made {
            Some(made) => places.insert(holder.0.to_string(), Place::Taken(made.clone())),
            None => places.remove(&*holder.0),
        };
        true
    }

    /// Frees the place of what is still being made; false when there is no such place.
    pub fn give_up(&self, id: &str) -> bool {
        match self.lock().entry(id.to_owned()) {
            Entry::Occupied(entry) if entry.get().taken().is_none() => {
                entry.remove();
                true
            }
            _ => false,
        }
    }

    /// Frees the place that something has, unless somebody has: its id may be another's by now.
    pub fn forget(&self, id: &str, taken: &T) {
        let mut places = self.lock();
        let there = places.get(id).and_then(Place::taken);
        if there.is_some_and(|there| std::ptr::eq(&**there, taken)) {
            places.remove(id);
        }
    }

    /// What has this id, once it is made.
    pub fn get(&self, id: &str) -> Option<Arc<T>> {
        self.lock().get(id).and_then(Place::taken).cloned()
    }

    /// All that is made.
    pub fn all(&self) -> Vec<Arc<T>> {
        self.lock().values().filter_map(Place::taken).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Place<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Places;

    #[test]
    fn an_id_is_freed_by_what_has_it_and_by_nothing_else() {
        let places = Places::<i32>::default();
        let (old, new) = (Arc::new(1), Arc::new(1));
        let holder = places.hold("id").unwrap();
        places.forget("id", &old);
        assert!(places.hold("id").is_none(), "it is held for what is being made");
        assert!(places.settle(&holder, Some(&new)));
        places.forget("id", &old);
        assert!(!places.give_up("id"));
        assert!(places.get("id").is_some());
        places.forget("id", &new);
        assert!(places.get("id").is_none() && places.all().is_empty());
    }

    #[test]
    fn what_has_lost_its_place_does_not_get_that_of_the_next() {
        let places = Places::default();
        let (first, made) = (places.hold("id").unwrap(), Arc::new(1));
        assert!(places.give_up("id"));
        let second = places.hold("id").unwrap();
        assert!(!places.settle(&first, Some(&made)), "it is the next one's");
        assert!(!places.settle(&first, None));
        assert!(places.get("id").is_none());
        assert!(places.settle(&second, None));
        assert!(places.hold("id").is_some());
    }
}
