-- wrk script: sends the bodies of a file in rotation, each written as its length, a line's end, its bytes.
-- usage: wrk -s post.lua [-H "Name: value"] URL -- FILE
local requests, next_one, count = {}, 0, 0
function init(args)
  local file = assert(io.open(args[1], "rb"))
  while true do
    local length = file:read("*n")
    if length == nil then break end
    file:read(1)
    count = count + 1
    requests[count] = wrk.format("POST", nil, wrk.headers, file:read(length))
  end
end
function request()
  next_one = next_one % count + 1
  return requests[next_one]
end
function done(summary, latency, _)
  local e = summary.errors
  io.write(string.format('JSON {"requests":%d,"seconds":%.3f,"p50_ms":%.3f,"p99_ms":%.3f,"errors":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    e.status + e.connect + e.read + e.write + e.timeout))
end
