# The bill of materials of a binary, in CycloneDX 1.5, from `cargo metadata`: the crates that are linked into it. What only runs at
# build time, procedural macros included, is not in it. There is no serial number, so that the same sources give the same bytes.
#
#   jq --rawfile lock Cargo.lock --arg sha256 HASH --arg at TIME --arg rust VERSION --arg libc NAME@VERSION -f sbom.jq

(.packages | map({key: .id, value: .}) | from_entries) as $packages
| def is_linked: $packages[.].targets | any(.kind[] == "proc-macro") | not;
  (.resolve.nodes
    | map({key: .id, value: [.deps[] | select(any(.dep_kinds[]; .kind == null)).pkg | select(is_linked)]})
    | from_entries) as $needs
| def closure: (. + [$needs[.[]][]] | unique) as $more | if $more == . then . else $more | closure end;
  ($lock
    | [scan("name = \"([^\"]*)\"\nversion = \"([^\"]*)\"\nsource = \"[^\"]*\"\nchecksum = \"([^\"]*)\"")
      | {key: "\(.[0])@\(.[1])", value: .[2]}]
    | from_entries) as $checksums
| def key: $packages[.] | "\(.name)@\(.version)";
  def purl: "pkg:cargo/\(key)";
  def licensed: if .license then {licenses: [{expression: (.license | gsub("/"; " OR "))}]} else {} end;
  def component: . as $id | $packages[.]
    | {type: "library", "bom-ref": ($id | purl), name, version, purl: ($id | purl)} + licensed
      + ($checksums[$id | key] | if . then {hashes: [{alg: "SHA-256", content: .}]} else {} end);
  def runtime($license): (split("@") | {name: .[0]} + if .[1] then {version: .[1]} else {} end) as $named
    | {type: "library", "bom-ref": "pkg:generic/\(.)", purl: "pkg:generic/\(.)", licenses: [{expression: $license}]} + $named;
  .resolve.root as $root
| ([$root] | closure - [$root] | sort_by(key)) as $linked
| [($rust | runtime("MIT OR Apache-2.0")), ($libc | runtime(if startswith("musl") then "MIT" else "LGPL-2.1-or-later" end))]
  as $runtimes
| ($packages[$root] | {type: "application", "bom-ref": "\(.name)@\(.version)", name, version} + licensed) as $application
| {
    bomFormat: "CycloneDX", specVersion: "1.5", version: 1,
    metadata: {timestamp: $at, component: ($application + {hashes: [{alg: "SHA-256", content: $sha256}]})},
    components: ([$linked[] | component] + $runtimes),
    dependencies: ([
      {ref: $application["bom-ref"], dependsOn: ([$needs[$root][] | purl] + [$runtimes[]["bom-ref"]] | unique)},
      ($linked[] | {ref: purl, dependsOn: ([$needs[.][] | purl] | unique)})
    ])
  }
