# Makes README.md's table of the values from the comments in values.yaml.
function cell(text) { gsub(/\|/, "\\|", text); return text }

/^ *#/ { sub(/^ *# ?/, ""); comment = comment == "" ? $0 : comment " " $0; next }
/^ *$/ { comment = ""; next }
match($0, /^ *[A-Za-z]+:/) {
  depth = (match($0, /[^ ]/) - 1) / 2
  key = $0; sub(/^ */, "", key); sub(/:.*/, "", key)
  value = $0; sub(/^[^:]*: */, "", value)
  path[depth] = key
  name = path[0]
  for (i = 1; i <= depth; i++) name = name "." path[i]
  if (value != "" || comment != "") printf "| `%s` | %s | %s |\n", name, value == "" ? "" : "`" cell(value) "`", cell(comment)
  comment = ""
}
