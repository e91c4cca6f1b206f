//! `limits` of the edge's file.

use std::time::Duration;

use yaml_rust2::Yaml;

use super::time;
use crate::edge::limits::Limits;

/// Reads what is there over the defaults.
pub(super) fn read(node: &Yaml, limits: &mut Limits, mistakes: &mut Vec<String>) {
    let map = match node {
        Yaml::Hash(map) => map,
        Yaml::Null => return,
        _ => return mistakes.push("limits is not a mapping".into()),
    };
    for (key, value) in map {
        let key = key.as_str().unwrap_or("?");
        let read = match key {
            "connections" => count(value, 1).map(|n| limits.connections = n),
            "connectionsPerAddress" => count(value, 1).map(|n| limits.connections_per_address = n),
            "requests" => count(value, 1).map(|n| limits.requests = n),
            "streamsPerConnection" => small(value, 1).map(|n| limits.streams_per_connection = n),
            // Below 8 KiB ordinary browsers with cookies do not fit; HTTP/1.1 reads no smaller buffers either.
            "headerBytes" => small(value, 8192).map(|n| limits.header_bytes = n),
            "headerLines" => count(value, 16).map(|n| limits.header_lines = n),
            "headerTime" => some_time(value).map(|time| limits.header_time = time),
            "tlsTime" => some_time(value).map(|time| limits.tls_time = time),
            "idleTime" => some_time(value).map(|time| limits.idle_time = time),
            "arrivals" => count(value, 1).map(|n| limits.arrivals = n),
            "arrivalsPerAddress" => count(value, 1).map(|n| limits.arrivals_per_address = n),
            "arrivalTime" => some_time(value).map(|time| limits.arrival_time = time),
            _ => Err("unknown key".into()),
        };
        if let Err(why) = read {
            mistakes.push(format!("limits.{key}: {why}"));
        }
    }
}

/// A million is above everything that one machine serves, and far below where arithmetic could overflow.
const MOST: i64 = 1 << 20;

fn count(value: &Yaml, least: usize) -> Result<usize, String> {
    let number = value.as_i64().filter(|number| *number <= MOST).and_then(|number| usize::try_from(number).ok());
    number.filter(|number| *number >= least).ok_or_else(|| format!("not a whole number from {least} to {MOST}"))
}

fn small(value: &Yaml, least: usize) -> Result<u32, String> {
    count(value, least).and_then(|number| u32::try_from(number).map_err(|error| error.to_string()))
}

fn some_time(value: &Yaml) -> Result<Duration, String> {
    time(value).and_then(|time| if time.is_zero() { Err("no time at all".into()) } else { Ok(time) })
}

#[cfg(test)]
mod tests {
    use yaml_rust2::YamlLoader;

    use super::*;

    fn parse(text: &str) -> (Limits, Vec<String>) {
        let (mut limits, mut mistakes) = (Limits::default(), Vec::new());
        read(&YamlLoader::load_from_str(text).unwrap()[0], &mut limits, &mut mistakes);
        (limits, mistakes)
    }

    #[test]
    fn every_limit_has_a_key_and_what_is_left_out_keeps_its_default() {
        let (limits, mistakes) = parse(
            "connections: 1\nconnectionsPerAddress: 2\nrequests: 3\nstreamsPerConnection: 4\nheaderBytes: 8193\n\
             headerLines: 16\nheaderTime: 7s\ntlsTime: 8s\nidleTime: 9s\narrivals: 10\narrivalsPerAddress: 11\n\
             arrivalTime: 12s\n",
        );
        assert!(mistakes.is_empty(), "{mistakes:?}");
        let seconds = Duration::from_secs;
        let all = Limits {
            connections: 1,
            connections_per_address: 2,
            requests: 3,
            streams_per_connection: 4,
            header_bytes: 8193,
            header_lines: 16,
            header_time: seconds(7),
            tls_time: seconds(8),
            idle_time: seconds(9),
            arrivals: 10,
            arrivals_per_address: 11,
            arrival_time: seconds(12),
        };
        assert_eq!(limits, all);
        assert_eq!(parse("requests: 3").0, Limits { requests: 3, ..Limits::default() });
    }

    #[test]
    fn a_limit_that_would_refuse_everybody_or_nobody_is_a_mistake() {
        for wrong in ["connections: 0", "requests: 99999999", "headerBytes: 100", "idleTime: 0s", "tlsTime: 5", "x: 1"]
        {
            let (limits, mistakes) = parse(wrong);
            assert_eq!((mistakes.len(), limits), (1, Limits::default()), "{wrong}");
        }
    }
}
