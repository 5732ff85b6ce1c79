//! Every kind of mistake: where it is pointed at and what is said. One row each.

use std::path::Path;

use super::{Checked, Fault, Faults, Place, Severity, check_text};

const GOOD: &str = r#"[node]
anchor-id = "192.0.2.1"
name = "a1"

[bgp]
local-as = 65000

[[bgp.neighbor]]
address = "192.0.2.100"
remote-as = 65000
import = "pools"
export = "pools"

[[bgp.neighbor]]
address = "2001:db8::200"
remote-as = 65000
import = [{ prefix = "10.9.0.0/16", ge = 24, le = 32 }]
max-prefix = { limit = 10, action = "restart" }

[mobility]
mode = "distributed"
fe-e = { ipv4 = "192.0.2.1", ipv6 = "2001:db8::1" }

[[mobility.pool]]
prefix = "10.1.0.0/16"
home = "a1"

[[mobility.pool]]
prefix = "2001:db8:1::/48"
home = "a2"

[[mobility.node]]
id = "car7"
mac = "02:00:00:00:00:07"
prefixes = ["10.1.0.7"]

[[mobility.node]]
id = "car8"
mac = "02:00:00:00:00:08"

[[access]]
interface = "eth1"
gateway = ["10.1.0.1", "fe80::1"]
router-advertisement = { interval = "10s", prefixes = ["2001:db8:1::/64"] }

[[peer]]
name = "a2"
anchor-id = "192.0.2.2"
address = "192.0.2.2"
may-claim = ["10.1.0.0/16"]

[tls]
ca = "ca.pem"
certificate = "a1.pem"
key = "a1.key"

[lisp]
mtu = 1500
rloc = { ipv4 = "192.0.2.1" }

[[lisp.map-server]]
address = "192.0.2.50"
key-file = "lisp-key"

[[lisp.ingress]]
prefix = "10.1.0.0/16"
policy = "push"

[lisp.server]
record-ttl = "10m"

[[lisp.server.site]]
name = "s2"
anchor-id = "192.0.2.9"
key-file = "key-a2"

[[lisp.server.subscriber]]
name = "i1"
anchor-id = "192.0.2.61"
key-file = "key-i1"

[[lisp.server.itr]]
name = "i1"
anchor-id = "192.0.2.61"
key-file = "otk-i1"

[transient]
packets = 1000
hold-time = "1s"

[api]
mode = "0660"

[metrics]
listen = "127.0.0.1:9411"

[kernel]
table = 254
"#;

fn check(text: &str) -> Result<(Checked, Faults), Faults> {
    check_text("killick.toml", text, Path::new("/etc/killick"), &[], false)
}

/// What to replace, by what, what the caret points at (as it stands on the line), what is said,
/// what the hint says. Each row gives exactly one finding.
type Row = (&'static str, &'static str, &'static str, &'static str, &'static str);

#[rustfmt::skip]
const ERRORS: &[Row] = &[
    // As written: keys, types, values.
    ("local-as = 65000", "local-as = \"x\"", "\"x\"", "invalid type: string \"x\", expected u32", ""),
    ("local-as = 65000", "local-as = 4294967296", "4294967296", "invalid value", ""),
    ("name = \"a1\"", "nme = \"a1\"\nname = \"a1\"", "nme", "unknown key `nme`", "did you mean `name`?"),
    ("anchor-id = \"192.0.2.1\"", "anchor = \"192.0.2.1\"", "anchor", "unknown key `anchor`", "did you mean `anchor-id`?"),
    ("[metrics]", "[metric]", "metric]", "unknown key `metric`", "did you mean `metrics`?"),
    ("[kernel]", "[quux]", "quux]", "unknown key `quux`", "expected one of: node, bgp,"),
    ("address = \"192.0.2.100\"", "address = \"192.0.2.300\"", "\"192.0.2.300\"", "invalid IP address", ""),
    ("\"10.1.0.0/16\"\nhome", "\"10.1.2.0/16\"\nhome", "\"10.1.2.0/16\"", "bits are set past", ""),
    ("mode = \"distributed\"", "mode = \"distribute\"", "\"distribute\"", "unknown word `distribute`", "did you mean `distributed`?"),
    ("import = \"pools\"", "import = \"pool\"", "\"pool\"", "unknown word `pool`", "did you mean `pools`?"),
    ("import = \"pools\"", "import = 5", "5", "expected \"none\", \"all\", \"pools\" or a list", ""),
    ("ge = 24", "gt = 24", "gt", "unknown key `gt`", "did you mean `ge`?"),
    ("prefix = \"10.9.0.0/16\", ge = 24", "ge = 24", "{", "`prefix` is missing", ""),
    ("mac = \"02:00:00:00:00:07\"", "mac = \"02:00:00:00:07\"", "\"02:00:00:00:07\"", "not a MAC address", ""),
    ("interval = \"10s\"", "interval = 10", "10,", "needs a unit (\"10s\"", ""),
    ("anchor-id = \"192.0.2.1\"", "anchor-id = \"0.0.0.0\"", "\"0.0.0.0\"", "must not be 0.0.0.0", ""),
    ("listen = \"127.0.0.1:9411\"", "listen = \"127.0.0.1\"", "\"127.0.0.1\"", "invalid socket address", ""),
    // Syntax.
    ("name = \"a1\"", "name = a1", "a1", "string values must be quoted", ""),
    ("name = \"a1\"", "name = \"a1\"\nname = \"b\"", "name = \"b\"", "duplicate key", ""),
    ("[kernel]", "[kernel", "", "unclosed table", ""),
    // Required.
    ("anchor-id = \"192.0.2.1\"\nname", "name", "node", "`anchor-id` is missing in [node]", ""),
    ("local-as = 65000\n", "", "bgp", "`local-as` is missing in [bgp]", ""),
    ("address = \"192.0.2.100\"\n", "", "[[bgp.neighbor]]", "`address` is missing in [[bgp.neighbor]]", ""),
    ("mode = \"distributed\"\n", "", "mobility", "`mode` is missing in [mobility]", ""),
    ("interface = \"eth1\"\n", "", "[[access]]", "`interface` is missing in [[access]]", ""),
    ("gateway = [\"10.1.0.1\", \"fe80::1\"]\n", "", "[[access]]", "`gateway` is missing", "default gateway"),
    ("key = \"a1.key\"\n", "", "tls", "`key` is missing in [tls]", ""),
    ("limit = 10, ", "", "max-prefix", "`limit` is missing", ""),
    ("address = \"192.0.2.2\"\n", "", "[[peer]]", "`address` is missing in [[peer]]", ""),
    ("fe-e = { ipv4 = \"192.0.2.1\", ipv6 = \"2001:db8::1\" }\n", "", "mobility", "`fe-e` is missing", "fe-e = {"),
    // BGP.
    ("local-as = 65000", "local-as = 65000\nhold-time = \"2s\"", "\"2s\"", "\"0s\" (never) or whole seconds from \"3s\"", ""),
    ("local-as = 65000", "local-as = 65000\nhold-time = \"4500ms\"", "\"4500ms\"", "whole seconds", ""),
    ("local-as = 65000", "local-as = 65000\ngraceful-restart-time = \"2h\"", "\"2h\"", "at most \"4095s\"", ""),
    ("local-as = 65000", "local-as = 65000\nrouter-id = \"0.0.0.0\"", "\"0.0.0.0\"", "`router-id` must not be 0.0.0.0", ""),
    ("address = \"2001:db8::200\"", "address = \"192.0.2.100\"", "\"192.0.2.100\"", "configured twice (line 9)", ""),
    ("address = \"2001:db8::200\"", "address = \"fe80::200\"", "\"fe80::200\"", "link-local", "global address"),
    ("remote-as = 65000\nimport = \"pools\"", "remote-as = 65001\nroute-reflector-client = true\nimport = \"pools\"", "true", "only an iBGP neighbour", "`bgp.local-as`"),
    ("import = \"pools\"", "local-address = \"2001:db8::9\"\nimport = \"pools\"", "\"2001:db8::9\"", "different families", ""),
    ("import = \"pools\"", "ttl-security-hops = 0\nimport = \"pools\"", "0", "cannot be 0 hops away", "1 for a neighbour on the same link"),
    ("import = \"pools\"", "families = []\nimport = \"pools\"", "[]", "at least one family", ""),
    ("import = \"pools\"", "send-hold-time = \"90s\"\nimport = \"pools\"", "\"90s\"", "longer than the hold time", ""),
    ("limit = 10", "limit = 0", "0", "limit of 0", "import = \"none\""),
    ("action = \"restart\"", "restart-after = \"1m\"", "\"1m\"", "needs `action = \"restart\"`", ""),
    ("ge = 24", "ge = 8", "{ prefix = \"10.9.0.0/16\"", "nothing can match", ""),
    ("local-as = 65000\n\n[[bgp.neighbor]]", "local-as = 65000\nlisten = []\n\n[[bgp.neighbor]]\npassive = true", "true", "bgp.listen is empty", "let this side connect"),
    ("import = \"pools\"\n", "import = \"pools\"\nhold-time = \"1s\"\n", "\"1s\"", "\"0s\" (never)", ""),
    ("[mobility]\n", "[[bgp.network]]\nprefix = \"10.1.3.0/24\"\n[mobility]\n", "\"10.1.3.0/24\"", "inside the mobility pool", "announce-aggregate"),
    // BFD.
    ("import = \"pools\"", "bfd = \"on\"\nimport = \"pools\"", "\"on\"", "expected true, false or a table", ""),
    ("import = \"pools\"", "bfd = { min-tx = \"5ms\" }\nimport = \"pools\"", "\"5ms\"", "from \"10ms\" to \"60s\"", ""),
    ("import = \"pools\"", "bfd = { multiplier = 0 }\nimport = \"pools\"", "0", "at least 1", ""),
    ("import = \"pools\"", "bfd = { multiplyer = 3 }\nimport = \"pools\"", "multiplyer", "unknown key `multiplyer`", "did you mean `multiplier`?"),
    ("import = \"pools\"", "bfd = { interface = \"eth1\" }\nimport = \"pools\"", "\"eth1\"", "has no interface", "multihop = false"),
    ("import = \"pools\"", "bfd = { multihop = false, min-ttl = 254 }\nimport = \"pools\"", "254", "always 255", "remove it"),
    ("import = \"pools\"", "bfd = { key-id = 2 }\nimport = \"pools\"", "2", "needs a `key-file`", ""),
    ("[mobility]\n", "[bfd]\nmin-rx = \"2m\"\n[mobility]\n", "\"2m\"", "from \"10ms\" to \"60s\"", ""),
    ("[mobility]\n", "[[bfd.session]]\nmultihop = true\n[mobility]\n", "[[bfd.session]]", "`address` is missing", ""),
    ("[mobility]\n", "[[bfd.session]]\naddress = \"224.0.0.1\"\n[mobility]\n", "\"224.0.0.1\"", "not the address of a router", ""),
    ("[mobility]\n", "[[bfd.session]]\naddress = \"192.0.2.9\"\nlocal-address = \"2001:db8::9\"\n[mobility]\n", "\"2001:db8::9\"", "another family", ""),
    ("[mobility]\n", "[[bfd.session]]\naddress = \"192.0.2.9\"\n[[bfd.session]]\naddress = \"192.0.2.9\"\n[mobility]\n", "\"192.0.2.9\"", "watched twice", ""),
    ("import = \"pools\"\n", "import = \"pools\"\nbfd = true\n[[bfd.session]]\naddress = \"192.0.2.100\"\n[[bgp.neighbor]]\naddress = \"192.0.2.8\"\nremote-as = 65000\nimport = \"all\"\n", "\"192.0.2.100\"", "watched for the neighbour", "remove this"),
    // LISP.
    ("mtu = 1500", "instance-id = 16777216", "16777216", "24 bits", ""),
    ("mtu = 1500", "mtu = 1300", "1300", "no room for packets of 1280", "1336"),
    ("mtu = 1500", "xtr-id = \"1f\"", "\"1f\"", "32 hexadecimal digits", ""),
    ("mtu = 1500", "encapsulation = \"vxlan\"", "\"vxlan\"", "unknown word `vxlan`", ""),
    ("mtu = 1500", "hook = \"lwt\"", "\"lwt\"", "unknown word `lwt`", ""),
    ("mtu = 1500", "encapsulation = \"rewrite\"\ninner-interfaces = [\"eth1\"]\nlocators = [\"198.51.100.0/24\", \"2001:db8:77::/64\"]", "\"rewrite\"", "a map-server that is an anchor too", "of its own"),
    ("mtu = 1500", "encapsulation = \"ebpf\"", "\"ebpf\"", "needs to know the interfaces", "inner-interfaces"),
    ("rloc = { ipv4 = \"192.0.2.1\" }", "rloc = { ipv4 = \"0.0.0.0\" }", "rloc", "not the address of a router", ""),
    ("mtu = 1500", "probe-interval = \"10ms\"", "\"10ms\"", "at least \"1s\"", ""),
    ("key-file = \"lisp-key\"\n", "", "[[lisp.map-server]]", "`key-file` is missing in [[lisp.map-server]]", ""),
    ("key-file = \"lisp-key\"\n", "key-file = \"lisp-key\"\n[[lisp.map-server]]\naddress = \"192.0.2.50\"\nkey-file = \"x\"\n", "\"192.0.2.50\"", "configured twice", ""),
    ("prefix = \"10.1.0.0/16\"\npolicy", "prefix = \"0.0.0.0/0\"\npolicy", "\"0.0.0.0/0\"", "whole address space", ""),
    ("record-ttl = \"10m\"", "record-ttl = \"90s\"", "\"90s\"", "whole minutes", ""),
    ("key-file = \"key-a2\"", "key-file = \"key-a2\"\nalgorithm = \"sha1\"", "\"sha1\"", "HMAC-SHA-1-96 is off", "allow-sha1"),
    ("anchor-id = \"192.0.2.61\"\nkey-file = \"key", "key-file = \"key", "[[lisp.server.subscriber]]", "who may subscribe is not said", "anchor-id"),
    ("rloc = { ipv4 = \"192.0.2.1\" }\n\n[[lisp.map", "encapsulation = \"gpe\"\ninner-interfaces = [\"a/b\"]\n\n[[lisp.map", "\"a/b\"", "not the name of an interface", ""),
    ("anchor-id = \"192.0.2.61\"\nkey-file = \"otk", "key-file = \"otk", "[[lisp.server.itr]]", "whose questions these are is not said", "anchor-id"),
    ("key-file = \"otk-i1\"", "key-file = \"key-a2\"", "\"key-a2\"", "is the key of site s2", "a key of its own"),
    ("key-file = \"key-a2\"", "key-file = \"key-a2\"\nalso-accept = [{ key-id = 1, key-file = \"new\" }]", "1", "another key with the number 1", ""),
    ("key-file = \"key-a2\"", "key-file = \"key-a2\"\nalso-accept = [{ key-id = 2 }]", "{ key-id = 2 }", "`key-file` is missing", ""),
    ("record-ttl = \"10m\"", "requests-per-source = 0", "0", "no number of questions a second", "no limit"),
    ("mtu = 1500", "security = true", "true", "no key for questions is shared with 192.0.2.50", "[[lisp.resolver-key]]"),
    ("[[lisp.ingress]]", "[[lisp.resolver-key]]\naddress = \"192.0.2.51\"\nkey-file = \"otk\"\n\n[[lisp.ingress]]", "\"192.0.2.51\"", "is not one of the map-resolvers", ""),
    // Mobility.
    ("mode = \"distributed\"", "mode = \"client\"", "\"client\"", "no peer is one", "role = \"controller\""),
    ("may-claim", "role = \"controller\"\nmay-claim", "\"controller\"", "nobody reports to a controller", ""),
    (", ipv6 = \"2001:db8::1\"", "", "fe-e", "no address that 2001:db8:1::/48 could be steered to", "ipv6"),
    ("mode = \"distributed\"", "mode = \"distributed\"\nsettle-delay = \"11m\"", "\"11m\"", "at most \"10m\"", ""),
    ("mode = \"distributed\"", "mode = \"distributed\"\nsettle-delay = \"5s\"\nsettle-unconfirmed = \"4s\"", "\"4s\"", "not be shorter than `settle-delay`", ""),
    ("home = \"a2\"", "home = \"a3\"", "\"a3\"", "no anchor is called \"a3\"", "a [[peer]]: a1, a2"),
    ("home = \"a2\"", "home = \"192.0.2.3\"", "\"192.0.2.3\"", "no anchor is called", ""),
    ("name = \"a2\"\n", "name = \"anchor2\"\n", "\"a2\"", "no anchor is called \"a2\"", "anchor2"),
    ("[[mobility.node]]\nid = \"car8\"", "[[mobility.pool]]\nprefix = \"10.1.4.0/24\"\nhome = \"a2\"\n[[mobility.node]]\nid = \"car8\"", "\"10.1.4.0/24\"", "overlaps 10.1.0.0/16 (line 25), which has another home", "one home"),
    ("[[mobility.node]]", "[[mobility.pool]]\nprefix = \"fe80::/10\"\n[[mobility.node]]", "\"fe80::/10\"", "cannot be routed", ""),
    ("prefix = \"2001:db8:1::/48\"\nhome = \"a2\"", "prefix = \"::/0\"", "\"::/0\"", "whole address space", ""),
    ("[[mobility.node]]", "[[mobility.pool]]\nprefix = \"10.1.0.0/16\"\n[[mobility.node]]", "\"10.1.0.0/16\"", "configured twice (line 25)", ""),
    ("id = \"car8\"", "id = \"car7\"", "\"car7\"", "node car7 is configured twice", ""),
    ("mac = \"02:00:00:00:00:08\"", "mac = \"02:00:00:00:00:07\"", "\"02:00:00:00:00:07\"", "belongs to two nodes", ""),
    ("mac = \"02:00:00:00:00:08\"", "mac = \"01:00:00:00:00:08\"", "\"01:00:00:00:00:08\"", "group address", ""),
    ("prefixes = [\"10.1.0.7\"]", "prefixes = [\"10.7.0.7\"]", "\"10.7.0.7\"", "10.7.0.7/32 is outside all mobility pools", ""),
    ("prefixes = [\"10.1.0.7\"]", "prefixes = [\"10.1.0.7\", \"10.1.0.1\"]", "\"10.1.0.1\"", "address of a gateway", ""),
    ("mac = \"02:00:00:00:00:08\"", "prefixes = [\"10.1.0.6/31\"]", "\"10.1.0.6/31\"", "10.1.0.6/31 is configured twice", ""),
    // Access.
    ("interface = \"eth1\"", "interface = \"an-interface-name\"", "\"an-interface-name\"", "1 to 15 characters", ""),
    ("interval = \"10s\"", "interval = \"1s\"", "\"1s\"", "from \"4s\"", ""),
    ("\"2001:db8:1::/64\"]", "\"2001:db8:1::/56\"]", "\"2001:db8:1::/56\"", "/64 only", ""),
    ("\"2001:db8:1::/64\"]", "\"2001:db8:9::/64\"]", "\"2001:db8:9::/64\"", "outside all mobility pools", "cannot move"),
    ("\"10.1.0.1\", \"fe80::1\"", "\"0.0.0.0\", \"10.1.0.1\", \"fe80::1\"", "\"0.0.0.0\"", "cannot be a gateway", ""),
    // Peers and TLS.
    ("anchor-id = \"192.0.2.2\"", "anchor-id = \"192.0.2.1\"", "\"192.0.2.1\"", "this node's own anchor id", ""),
    ("may-claim = [\"10.1.0.0/16\"]", "may-claim = [\"10.0.0.0/8\"]", "\"10.0.0.0/8\"", "outside all mobility pools", ""),
    ("may-claim", "role = \"external\"\nmay-claim", "\"192.0.2.2\"", "an external anchor uses our API", ""),
    ("[tls]\nca = \"ca.pem\"\ncertificate = \"a1.pem\"\nkey = \"a1.key\"\n", "", "[[peer]]", "[[peer]] needs [tls]", "killick tls new-ca"),
    // The transient path.
    ("packets = 1000", "packets = 0", "0", "at least 1", ""),
    ("packets = 1000", "table = 254", "254", "has routes of others", "of its own"),
    ("packets = 1000", "port = 0", "0", "not a port", ""),
    ("packets = 1000", "device = \"a b\"", "\"a b\"", "not an interface name", "letters"),
    ("packets = 1000", "when-full = \"drop-new\"", "\"drop-new\"", "unknown word `drop-new`", "drop-newest"),
    ("hold-time = \"1s\"", "hold-time = \"2m\"", "\"2m\"", "at most \"1m\"", ""),
    // Sockets, kernel.
    ("mode = \"0660\"", "mode = \"0888\"", "\"0888\"", "octal", ""),
    ("mode = \"0660\"", "mode = \"0666\"", "\"0666\"", "every user", ""),
    ("mode = \"0660\"", "stream-socket = \"/run/killick/api.sock\"", "\"/run/killick/api.sock\"", "same as api.socket", ""),
    ("127.0.0.1:9411", "127.0.0.1:4067", "\"127.0.0.1:4067\"", "collides with tls.listen", ""),
    ("table = 254", "protocol = 12", "12", "belongs to BIRD", "107"),
    ("table = 254", "table = 255", "255", "not a table", ""),
    ("table = 254", "metric = 0", "0", "1024", ""),
    ("name = \"a1\"", "name = \"a1\"\nlog-level = \"loud\"", "\"loud\"", "not a log level", "trace"),
];

/// As [`ERRORS`], at an anchor that is no map-server.
#[rustfmt::skip]
const REWRITE_ERRORS: &[Row] = &[
    ("mtu = 1500", "encapsulation = \"rewrite\"\ninner-interfaces = [\"eth1\"]\nlocators = [\"198.51.100.0/24\"]", "\"rewrite\"", "there are no ipv6 locators for them", "locators = ["),
    ("mtu = 1500", "encapsulation = \"rewrite\"\ninner-interfaces = [\"eth1\"]\nlocators = [\"2001:db8:77::/64\", \"198.50.0.0/15\"]", "\"198.50.0.0/15\"", "a pool of locators is a /16 to /30", ""),
    ("mtu = 1500", "encapsulation = \"rewrite\"\ninner-interfaces = [\"eth1\"]\nlocators = [\"198.51.100.0/24\", \"2001:db8:77::/97\"]", "\"2001:db8:77::/97\"", "a pool of locators is a /16 to /96", ""),
    ("mtu = 1500", "encapsulation = \"rewrite\"\ninner-interfaces = [\"eth1\"]\nlocators = [\"10.1.9.0/24\", \"2001:db8:77::/64\"]", "\"10.1.9.0/24\"", "overlaps with 10.1.0.0/16", ""),
    ("mtu = 1500", "encapsulation = \"rewrite\"\ninner-interfaces = [\"eth1\"]\nlocators = [\"198.51.100.0/24\", \"2001:db8:77::/64\", \"198.51.100.8/30\"]", "\"198.51.100.8/30\"", "overlaps with 198.51.100.0/24", ""),
    ("mtu = 1500", "encapsulation = \"rewrite\"\ninner-interfaces = [\"eth1\"]\nlocators = [\"192.0.2.0/24\", \"2001:db8:77::/64\"]", "\"192.0.2.0/24\"", "has our own address 192.0.2.1 in it", ""),
];

#[test]
fn the_good_one_is_good() {
    let (checked, warnings) = check(GOOD).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(warnings.list, []);
    assert_eq!(checked.peers[0].name, "a2");
    assert_eq!(checked.tls.unwrap().ca, Path::new("/etc/killick/ca.pem"));
    assert_eq!(checked.api.stream_socket, Path::new("/run/killick/stream.sock"));
    let mobility = checked.mobility.unwrap();
    assert!(mobility.pools[0].announce_aggregate && !mobility.pools[1].announce_aggregate);
    let bgp = checked.bgp.unwrap();
    assert!(bgp.neighbors[0].import.permits("10.1.3.3/32".parse().unwrap()));
    assert!(!bgp.neighbors[0].import.permits("10.2.3.3/32".parse().unwrap()));
    assert!(bgp.neighbors[1].import.permits("10.9.3.3/32".parse().unwrap()));
    assert!(!bgp.neighbors[1].import.permits("10.9.0.0/16".parse().unwrap()));
    assert!(!bgp.neighbors[1].export.permits("10.9.0.0/16".parse().unwrap()));
}

#[test]
fn each_mistake_is_pointed_at() {
    point_at(ERRORS, GOOD);
}

#[test]
fn each_mistake_of_rewriting_is_pointed_at() {
    let (before, server) = GOOD.split_once("[lisp.server]").unwrap();
    let (_, after) = server.split_once("[transient]").unwrap();
    point_at(REWRITE_ERRORS, &format!("{before}[transient]{after}"));
}

fn point_at(rows: &[Row], good: &str) {
    let mut wrong = String::new();
    for row in rows {
        let (from, to, pointed, what, hint) = *row;
        assert!(good.contains(from), "nothing to replace: {from}");
        let text = good.replacen(from, to, 1);
        let faults = match check(&text) {
            Ok(_) => {
                wrong.push_str(&format!("accepted: {row:?}\n"));
                continue;
            }
            Err(faults) => faults,
        };
        let errors: Vec<&Fault> =
            faults.list.iter().filter(|f| f.severity == Severity::Error).collect();
        let [Fault { place, what: said, hint: hinted, .. }] = errors.as_slice() else {
            wrong.push_str(&format!("not one error: {row:?}\n{faults}\n"));
            continue;
        };
        let Place::File { line, column, excerpt, .. } = place else {
            wrong.push_str(&format!("no line: {row:?}\n{faults}\n"));
            continue;
        };
        let at: String = excerpt.chars().skip(column - 1).collect();
        let as_in_text = text.lines().nth(line - 1) == Some(excerpt);
        let hinted = hinted.as_deref().unwrap_or("");
        // A table is pointed at by its header or by its name in the header.
        let at_pointed = at.starts_with(pointed) || excerpt.starts_with(pointed);
        if !at_pointed || !as_in_text || !said.contains(what) || !hinted.contains(hint) {
            wrong.push_str(&format!("{row:?}\n{faults}\n"));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[rustfmt::skip]
const WARNINGS: &[Row] = &[
    ("mode = \"distributed\"", "mode = \"client\"", "[bgp]", "in mode \"client\"", ""),
    ("import = \"pools\"\nexport = \"pools\"\n", "", "[[bgp.neighbor]]", "told nothing and believed nothing", "set `import`"),
    ("local-as = 65000", "local-as = 65000\ninstall-table = 7", "install-table = 7", "does nothing without `install = true`", ""),
    ("home = \"a2\"", "home = \"a2\"\nannounce-aggregate = true", "announce-aggregate = true", "not their home", ""),
    ("mac = \"02:00:00:00:00:08\"\n", "", "[[mobility.node]]", "says nothing", ""),
    ("gateway = [\"10.1.0.1\", \"fe80::1\"]", "gateway = [\"fe80::1\"]", "gateway =", "no ipv4 gateway", ""),
];

#[test]
fn what_is_odd_is_a_warning() {
    for row in WARNINGS {
        let (from, to, pointed, what, hint) = *row;
        let faults = match check(&GOOD.replacen(from, to, 1)) {
            Ok((_, faults)) | Err(faults) => faults,
        };
        let warning = faults.list.iter().find(|f| f.severity == Severity::Warning);
        let Some(Fault {
            place: Place::File { excerpt, .. }, what: said, hint: Some(hinted), ..
        }) = warning
        else {
            panic!("{row:?}\n{faults}");
        };
        assert!(excerpt.starts_with(pointed), "{row:?}\n{faults}");
        assert!(said.contains(what) && hinted.contains(hint), "{row:?}\n{faults}");
    }
}

#[test]
fn all_mistakes_are_reported_at_once_in_the_order_of_the_file() {
    let text = GOOD
        .replace("name = \"a1\"", "nmae = \"a1\"")
        .replace("local-as = 65000", "local-as = \"AS65000\"")
        .replace("ge = 24", "ge = \"x\"")
        .replace("interval = \"10s\"", "interval = 10, colour = \"red\"")
        .replace("mode = \"0660\"", "mode = \"rw\"");
    let faults = check(&text).unwrap_err();
    let lines: Vec<usize> = faults
        .list
        .iter()
        .map(|fault| match fault.place {
            Place::File { line, .. } => line,
            Place::Environment(_) | Place::Whole => panic!("{faults}"),
        })
        .collect();
    // 25: the pool's home "a1", which is nobody's name now.
    assert_eq!(lines, [3, 6, 17, 26, 44, 44, 92], "{faults}");
    assert!(faults.to_string().ends_with("killick.toml: 7 errors"), "{faults}");
}

#[test]
fn the_report_looks_like_a_compilers() {
    let faults = check(&GOOD.replace("name = \"a1\"", "näme = 1")).unwrap_err();
    assert!(faults.list.len() == 1, "{faults}");
    let faults =
        check(&GOOD.replace("remote-as = 65000\nimport = \"p", "remot-as = 65000\nimport = \"p"));
    assert_eq!(
        faults.unwrap_err().to_string(),
        "error: unknown key `remot-as`
  --> killick.toml:10:1
   |
10 | remot-as = 65000
   | ^^^^^^^^
   = help: did you mean `remote-as`?

killick.toml: 1 error"
    );
}

fn variables(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn the_environment_overrides_when_asked() {
    let environment = variables(&[
        ("HOME", "/root"),
        ("KILLICK_SOCKET", "/tmp/x"),
        ("KILLICK__BGP__HOLD_TIME", "30s"),
        ("KILLICK__BGP__NEIGHBOR__0__REMOTE_AS", "65009"),
        ("KILLICK__BGP__NEIGHBOR__2__ADDRESS", "192.0.2.9"),
        ("KILLICK__BGP__NEIGHBOR__2__REMOTE_AS", "65010"),
        ("KILLICK__BGP__NEIGHBOR__2__IMPORT", "all"),
        ("KILLICK__BGP__NEIGHBOR__1__IMPORT", r#"[{ prefix = "10.8.0.0/16" }]"#),
        ("KILLICK__NODE__NAME", "007"),
        ("KILLICK__MOBILITY__POOL__0__HOME", "007"),
        ("KILLICK__MOBILITY__NO_EXPORT", "false"),
        ("KILLICK__API__MODE", "0600"),
    ]);
    let (checked, warnings) = check_text("killick.toml", GOOD, Path::new(""), &environment, true)
        .unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(warnings.list, []);
    let bgp = checked.bgp.unwrap();
    assert_eq!(bgp.neighbors[0].hold_time.as_secs(), 30);
    assert_eq!(bgp.neighbors[0].remote_as, 65009);
    assert!(!bgp.neighbors[1].import.permits("10.9.3.3/32".parse().unwrap()));
    assert!(bgp.neighbors[1].import.permits("10.8.0.0/16".parse().unwrap()));
    assert_eq!(bgp.neighbors[2].remote_as, 65010);
    assert_eq!(checked.node.name, "007");
    assert_eq!(checked.api.mode, 0o600);
    assert!(!checked.mobility.unwrap().no_export);

    let (checked, warnings) =
        check_text("killick.toml", GOOD, Path::new(""), &environment, false).unwrap();
    assert_eq!(checked.node.name, "a1");
    assert_eq!(warnings.list.len(), 10, "each ignored override is said: {warnings}");
}

#[test]
fn a_bad_variable_is_named() {
    let environment = variables(&[
        ("KILLICK__BGP__HOLDTIME", "30s"),
        ("KILLICK__BGP__HOLD_TIME", "30"),
        ("KILLICK__BGP__LOCAL_AS", "many"),
        ("KILLICK__BGP__NEIGHBOR__7__REMOTE_AS", "1"),
        ("KILLICK__NODE__", "1"),
        ("KILLICK__API__MODE", "0666"),
        ("KILLICK_BGP__PORT", "1790"),
        ("KILLICK_SOKET", "/tmp/x"),
    ]);
    let faults = check_text("killick.toml", GOOD, Path::new(""), &environment, true).unwrap_err();
    let expected = [
        (
            "KILLICK__BGP__HOLDTIME",
            "unknown key `holdtime`",
            "did you mean KILLICK__BGP__HOLD_TIME?",
        ),
        ("KILLICK__BGP__HOLD_TIME", "needs a unit (\"30s\"", ""),
        ("KILLICK__BGP__LOCAL_AS", "invalid type: string \"many\"", ""),
        ("KILLICK__BGP__NEIGHBOR__7__REMOTE_AS", "which has 2 in the file", ""),
        ("KILLICK__NODE__", "not the name of a key", ""),
        ("KILLICK__API__MODE", "every user", "0660"),
        ("KILLICK_BGP__PORT", "not a variable that killick knows", "KILLICK__BGP__PORT"),
        ("KILLICK_SOKET", "not a variable that killick knows", "KILLICK_SOCKET"),
    ];
    assert_eq!(faults.list.len(), expected.len(), "{faults}");
    for (name, what, hint) in expected {
        let place = Place::Environment(name.to_owned());
        let fault = faults.list.iter().find(|f| f.place == place);
        let fault = fault.unwrap_or_else(|| panic!("{name}: {faults}"));
        assert!(fault.what.contains(what), "{name}: {faults}");
        assert!(fault.hint.as_deref().unwrap_or("").contains(hint), "{name}: {faults}");
    }
}

#[test]
fn the_examples_are_valid() {
    for (name, text) in [
        ("killick.toml", include_str!("../../config/killick.toml")),
        ("anchor.toml", include_str!("../../config/anchor.toml")),
        ("client.toml", include_str!("../../config/client.toml")),
        ("controller.toml", include_str!("../../config/controller.toml")),
        ("map-server.toml", include_str!("../../config/map-server.toml")),
        ("ingress.toml", include_str!("../../config/ingress.toml")),
        ("reflector.toml", include_str!("../../config/reflector.toml")),
    ] {
        let checked = check_text(name, text, Path::new(""), &[], false);
        let (_, warnings) = checked.unwrap_or_else(|faults| panic!("{faults}"));
        assert_eq!(warnings.list, [], "{name}");
    }
}

/// Every prefix of the file, and the file with any one octet changed, is accepted or reported, and
/// never more than that.
#[test]
fn damaged_files_are_reported() {
    for at in (0..GOOD.len()).step_by(7) {
        if let Err(faults) = check(&GOOD[..at]) {
            assert!(faults.has_errors() && !faults.to_string().is_empty());
        }
        for octet in ["\"", "[", "\n", "=", "\u{fc}"] {
            let mut text = GOOD.to_owned();
            text.replace_range(at..=at, octet);
            if let Err(faults) = check(&text) {
                assert!(faults.has_errors() && !faults.to_string().is_empty());
            }
        }
    }
}
