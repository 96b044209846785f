//! The commands of this tier, to one server or to a cluster.
//!
//! A cluster refuses commands whose keys lie on different nodes: there each key has a command of its own, and those of a
//! node go to it together. The client follows keys that have moved or are moving to another node.

use std::collections::HashSet;
use std::time::Duration;

use redis::cluster::{ClusterClient, ClusterConnection, ClusterPipeline};
use redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo, SingleNodeRoutingInfo};
use redis::{
    Client, Cmd, Connection, ConnectionInfo, ErrorKind, FromRedisValue, Pipeline, RedisResult, ServerError,
    ServerErrorKind, Value, cmd, from_redis_value,
};

/// How often a command follows its key to another node, or is sent again after a change of the cluster, and how long it
/// waits in between, in milliseconds. All of it counts as one failure when it is in vain.
const ATTEMPTS: u32 = 3;
const LONGEST_WAIT: u64 = 10;
/// Keys that one step of a scan looks at.
const SCANNED: usize = 1000;

/// How to connect.
pub(super) enum RedisClient {
    /// To one server.
    Single(Client),
    /// To a cluster.
    Cluster(ClusterClient),
}

/// Connected.
pub(super) enum RedisConnection {
    /// To one server.
    Single(Connection),
    /// To the nodes of a cluster.
    Cluster(Box<ClusterConnection>),
}

impl RedisClient {
    pub(super) fn single(info: ConnectionInfo) -> RedisResult<Self> {
        Client::open(info).map(Self::Single)
    }

    /// `nodes` are some of the cluster's: the others are learned from them.
    pub(super) fn cluster(
        nodes: Vec<ConnectionInfo>,
        connect: Duration,
        timeout: Duration,
    ) -> RedisResult<Self> {
        let client = ClusterClient::builder(nodes)
            .connection_timeout(connect)
            .response_timeout(timeout)
            .retries(ATTEMPTS)
            .min_retry_wait(1)
            .max_retry_wait(LONGEST_WAIT);
        client.build().map(Self::Cluster)
    }

    pub(super) fn connect(&self, connect: Duration, timeout: Duration) -> RedisResult<RedisConnection> {
        match self {
            Self::Single(client) => {
                let connection = client.get_connection_with_timeout(connect)?;
                connection.set_read_timeout(Some(timeout))?;
                connection.set_write_timeout(Some(timeout))?;
                Ok(RedisConnection::Single(connection))
            }
            Self::Cluster(client) => client.get_connection().map(Box::new).map(RedisConnection::Cluster),
        }
    }
}

impl RedisConnection {
    /// The values of `names`, in their order.
    pub(super) fn get(&mut self, names: &[String]) -> RedisResult<Vec<Option<Vec<u8>>>> {
        match self {
            Self::Single(connection) => cmd("MGET").arg(names).query(connection),
            Self::Cluster(connection) => {
                let get = |name: &String| {
                    let mut get = cmd("GET");
                    get.arg(name);
                    get
                };
                each(connection, &names.iter().map(get).collect::<Vec<_>>())
            }
        }
    }

    /// Stores values for so many seconds.
    pub(super) fn set(&mut self, entries: &[(String, Vec<u8>)], seconds: u64) -> RedisResult<()> {
        match self {
            Self::Single(connection) => {
                let mut requests = Pipeline::with_capacity(entries.len());
                for (name, value) in entries {
                    requests.cmd("SET").arg(name).arg(value).arg("EX").arg(seconds).ignore();
                }
                requests.query(connection)
            }
            Self::Cluster(connection) => {
                let set = |(name, value): &(String, Vec<u8>)| {
                    let mut set = cmd("SET");
                    set.arg(name).arg(value).arg("EX").arg(seconds);
                    set
                };
                each::<Value>(connection, &entries.iter().map(set).collect::<Vec<_>>()).map(|_| ())
            }
        }
    }

    /// Whether it is a node of a cluster that is asked as a single server. For a user who may not ask that, it is none.
    pub(super) fn is_node(&mut self) -> RedisResult<bool> {
        let Self::Single(connection) = self else { return Ok(false) };
        match cmd("INFO").arg("cluster").query::<String>(connection) {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm) => Ok(false),
            answer => Ok(answer?.contains("cluster_enabled:1")),
        }
    }

    /// Removes all keys that begin with `prefix`.
    pub(super) fn remove(&mut self, prefix: &str) -> RedisResult<()> {
        let scan = |cursor: u64| {
            let mut scan = cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(format!("{prefix}*")).arg("COUNT").arg(SCANNED);
            scan
        };
        match self {
            Self::Single(connection) => {
                let mut cursor = 0;
                loop {
                    let (next, names): (u64, Vec<Vec<u8>>) = scan(cursor).query(connection)?;
                    if !names.is_empty() {
                        cmd("DEL").arg(names).query::<u64>(connection)?;
                    }
                    if next == 0 {
                        return Ok(());
                    }
                    cursor = next;
                }
            }
            Self::Cluster(connection) => {
                let everywhere = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
                let first = connection.route_command(&scan(0), everywhere)?;
                let first: Vec<(String, Value)> = from_redis_value(first)?;
                for (address, answer) in first {
                    let (mut cursor, mut names): (u64, Vec<Vec<u8>>) = from_redis_value(answer)?;
                    loop {
                        let delete = |name: &Vec<u8>| {
                            let mut delete = cmd("DEL");
                            delete.arg(name);
                            delete
                        };
                        each::<Value>(connection, &names.iter().map(delete).collect::<Vec<_>>())?;
                        if cursor == 0 {
                            break;
                        }
                        let answer = connection.route_command(&scan(cursor), node(&address)?)?;
                        (cursor, names) = from_redis_value(answer)?;
                    }
                }
                Ok(())
            }
        }
    }
}

/// The answers to commands of one key each. Those of a node go to it together; one whose key is elsewhere follows it.
fn each<T: FromRedisValue>(connection: &mut ClusterConnection, commands: &[Cmd]) -> RedisResult<Vec<T>> {
    let together = |connection: &mut ClusterConnection, commands: &mut dyn Iterator<Item = &Cmd>| {
        let (mut requests, mut count) = (ClusterPipeline::new(), 0);
        commands.for_each(|command| {
            requests.add_command(command.clone());
            count += 1;
        });
        if count == 0 { Ok(Vec::new()) } else { requests.query::<Vec<T>>(connection) }
    };
    let error = match together(connection, &mut commands.iter()) {
        Ok(answers) => return Ok(answers),
        Err(error) => error,
    };
    let is_elsewhere = |error: &ServerError| {
        matches!(
            error.kind(),
            Some(ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::TryAgain)
        )
    };
    let refused = error.clone().into_server_errors().unwrap_or_default();
    if refused.is_empty() || !refused.iter().all(|(_, error)| is_elsewhere(error)) {
        return Err(error);
    }
    let moved: HashSet<usize> = refused.iter().map(|(number, _)| *number).collect();
    let mut others = commands.iter().enumerate().filter(|(number, _)| !moved.contains(number));
    let mut others = together(connection, &mut others.by_ref().map(|(_, command)| command))?.into_iter();
    let answers = commands.iter().enumerate().map(|(number, command)| match moved.contains(&number) {
        true => command.query(connection),
        false => others.next().ok_or_else(|| (ErrorKind::Client, "an answer is missing").into()),
    });
    answers.collect()
}

/// The node of this address: host and port.
fn node(address: &str) -> RedisResult<RoutingInfo> {
    let parts = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let (host, port) = parts.ok_or((ErrorKind::Client, "a node has no address"))?;
    Ok(RoutingInfo::SingleNode(SingleNodeRoutingInfo::ByAddress { host: host.to_owned(), port }))
}
