# Condenses pip's output: a line for every 20 packages and for each large download, and errors whole.
# What pip says otherwise is in the log that the Makefile names.
/^ *(Downloading|Using cached) .*\(([0-9.]+ GB|[0-9]{3,}[0-9.]* MB)\)/ { sub(/^ */, ""); report($0) }
/^Collecting/ && ++collected % 20 == 0 { report(collected " packages collected") }
/^Installing collected packages/ { report("installing " gsub(/,/, ",") + 1 " packages") }
/^Successfully installed/ { report("done") }
/^ERROR/ { failed = 1 }
failed { print; fflush() }

function report(text) { print "  " text; fflush() }
