//! Listeners that do mutual TLS in front of a service in the same pod.
