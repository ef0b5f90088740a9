# What tests/lab/* have in common: the test programs that `cargo test --workspace` built. Other words for cargo would
# choose other features, and so build everything a second time.
cargo test --locked -q --workspace --no-run
# A program a line: its name, the directory of its package, its path.
built=$(cargo test --locked --workspace --no-run --message-format json 2>/dev/null |
  sed -n 's/.*"manifest_path":"\([^"]*\)\/Cargo.toml".*"name":"\([^"]*\)".*"executable":"\([^"]*\)".*/\2 \1 \3/p')

# program NAME: the directory of a package, and the path of its tests NAME (or of its library's, NAME with _ for -).
program() {
  local found
  found=$(sed -n "s/^$1 //p" <<<"$built" | tail -1)
  [ -x "${found#* }" ] || { echo "cargo did not say where the tests $1 are" >&2; return 1; }
  echo "$found"
}
