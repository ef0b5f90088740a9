# What tests/lab/* have in common: the test programs that `cargo test --workspace` built. Other words for cargo would
# choose other features, and so build everything a second time.

# program NAME KIND...: the path of the tests NAME; KIND is `--test NAME`, or `--lib`.
program() {
  local name=$1 found
  shift
  found=$(cargo test --locked --workspace --no-run "$@" --message-format json 2>/dev/null |
    sed -n "s/.*\"name\":\"$name\".*\"executable\":\"\([^\"]*\)\".*/\1/p" | tail -1)
  [ -x "$found" ] || { echo "cargo did not say where the tests $name are" >&2; return 1; }
  echo "$found"
}
cargo test --locked -q --workspace --no-run
