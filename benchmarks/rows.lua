-- wrk: POST one row per request, taken in turn from a file, so that no two requests in a row are alike.
-- Arguments after `--`: the path, the file with one JSON document per line.
local bodies = {}
local path = nil
local turn = 0

function init(arguments)
  path = arguments[1]
  for line in io.lines(arguments[2]) do bodies[#bodies + 1] = line end
end

function request()
  turn = turn % #bodies + 1
  return wrk.format("POST", path, {["Content-Type"] = "application/json"}, bodies[turn])
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %.6f, "p50_ms": %.4f, "p99_ms": %.4f, "errors": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
