-- Requests for wrk: its arguments hold them, with words in braces that are filled in
-- for each request, so that none is a duplicate. With many, each is one of them.
-- Usage: wrk -s load.lua URL -- NONCE REQUEST...
local words = {}
for word in ([[
opening hours question about your workshop next spring please could tell whether
there are places left for two people and what it costs to bring our own tools kind
regards from the garden village library bicycle kitchen morning window letter paper
river stone bridge concert market recipe bread coffee winter blanket lantern piano
]]):gmatch("%a+") do words[#words + 1] = word end

local heads, bodies, nonce, n = {}, {}, nil, 0
local fill = {}
function fill.n() return n end
function fill.nonce() return nonce end
function fill.mod(number) return n % number end
function fill.under(number) return math.random(number) - 1 end
function fill.words(number)
  local chosen = {}
  for i = 1, number do chosen[i] = words[math.random(#words)] end
  return table.concat(chosen, " ")
end
function fill.client(number) -- one of so many addresses
  local i = fill.under(number)
  return string.format("10.%d.%d.%d", math.floor(i / 65536), math.floor(i / 256) % 256, i % 256)
end

local function filled(text)
  return (text:gsub("{(%l+) ?(%d*)}", function(name, number)
    return fill[name](tonumber(number))
  end))
end

function init(args)
  nonce = args[1]
  math.randomseed(tonumber(nonce))
  for i = 2, #args do
    local head, body = args[i]:match("^(.-)\n\n(.*)$")
    heads[#heads + 1], bodies[#bodies + 1] = head:gsub("\n", "\r\n") .. "\r\n", body
  end
end

function request()
  n = n + 1
  local i = #heads > 1 and math.random(#heads) or 1
  local head, body = filled(heads[i]), filled(bodies[i])
  if body ~= "" then head = head .. "Content-Length: " .. #body .. "\r\n" end
  return head .. "\r\n" .. body
end

function done(summary, latency)
  local e = summary.errors
  print(string.format(
    'RESULT {"requests": %d, "seconds": %.6f, "p50": %.1f, "p99": %.1f, '
      .. '"refused": %d, "broken": %d}',
    summary.requests, summary.duration / 1e6, latency:percentile(50),
    latency:percentile(99), e.status, e.connect + e.read + e.write + e.timeout))
end
