-- What the holder of a token may: read once from the claims, which Envoy puts into a header as
-- base64url, and remembered by that text, for callers send a token again and again.

local MAX_REMEMBERED = 1000

local DIGITS = {}
for digit = 0, 63 do
  local alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
  DIGITS[string.byte(alphabet, digit + 1)] = digit
end

local function from_base64url(text)
  local out, held, bits = {}, 0, 0
  for at = 1, #text do
    held, bits = held * 64 + DIGITS[string.byte(text, at)], bits + 6
    if bits >= 8 then
      bits = bits - 8
      local byte = math.floor(held / 2 ^ bits)
      table.insert(out, string.char(byte))
      held = held - byte * 2 ^ bits
    end
  end
  return table.concat(out)
end

-- The tenant and the permissions in the JSON that tokens.py and callers.lua write, without spaces and
-- with nothing in it that needs to be escaped. What is another way is a mistake, after which the call
-- is refused.
local function parse_claims(json)
  local permissions = {}
  for verb, models in string.gmatch(string.match(json, '"permissions":(%b{})'), '"(%a+)":(%b[])') do
    permissions[verb] = {}
    for model in string.gmatch(models, '"([^"]+)"') do table.insert(permissions[verb], model) end
  end
  return {tenant = string.match(json, '"tenant":"([^"]+)"'), permissions = permissions}
end

local remembered, count = {}, 0

local function claims_of(header)
  local claims = remembered[header]
  if claims == nil then
    claims = parse_claims(from_base64url(header))
    if count == MAX_REMEMBERED then remembered, count = {}, 0 end
    remembered[header], count = claims, count + 1
  end
  return claims
end
