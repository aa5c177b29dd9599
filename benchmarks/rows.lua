-- wrk: POST bodies in turn from a file, one a line, so that no two requests in a row are alike. All requests are
-- written once at the start: the generator costs as little as it can.
-- Arguments after `--`: the path, the file, the Content-Type, more headers as "Name: value" each. A file whose name
-- ends in .bin is one body.
local requests = {}
local turn = 0

function init(arguments)
  local headers = {["Content-Type"] = arguments[3]}
  for index = 4, #arguments do
    local name, value = arguments[index]:match("^(.-): (.*)$")
    headers[name] = value
  end
  if arguments[2]:match("%.bin$") then
    local file = io.open(arguments[2], "rb")
    requests[1] = wrk.format("POST", arguments[1], headers, file:read("*a"))
    file:close()
  else
    for line in io.lines(arguments[2]) do
      requests[#requests + 1] = wrk.format("POST", arguments[1], headers, line)
    end
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %.6f, "p50_ms": %.4f, "p99_ms": %.4f, "errors": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
