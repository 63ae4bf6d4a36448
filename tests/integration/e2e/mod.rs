//! Weir as people meet it: installed with helm on a real cluster, with the rights that it needs and no more, events
//! posted by pods to the broker's URL and delivered to Services.
//!
//! `make e2e` runs these; where it did not ask for a node they are skipped, and say so.

mod cluster;
mod installation;
mod jetstream;
mod load;
mod network_policies;
mod outages;
mod people;
