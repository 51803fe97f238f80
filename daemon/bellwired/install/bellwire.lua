-- A dissector for Wireshark and tshark: vfio-user messages, and the events of devices, in captures of Bellwire.
--
-- It takes apart every command and field of the ratified vfio-user protocol (vfio-user.rst in QEMU's documentation),
-- and DEVICE_GET_REGION_IO_FDS in both layouts that are in use. A packet names its dissector (exported PDU), so no
-- setting is needed. Before a message stand four bytes: the sender, a zero, and the number of file descriptors.

local vfio_user = Proto("vfio-user", "vfio-user")
local bellwire = Proto("bellwire", "Bellwire device event")

local COMMANDS = {
  [1] = "VERSION", [2] = "DMA_MAP", [3] = "DMA_UNMAP", [4] = "DEVICE_GET_INFO", [5] = "DEVICE_GET_REGION_INFO",
  [6] = "DEVICE_GET_REGION_IO_FDS", [7] = "DEVICE_GET_IRQ_INFO", [8] = "DEVICE_SET_IRQS", [9] = "REGION_READ",
  [10] = "REGION_WRITE", [11] = "DMA_READ", [12] = "DMA_WRITE", [13] = "DEVICE_RESET", [15] = "REGION_WRITE_MULTI",
  [16] = "DEVICE_FEATURE", [17] = "MIG_DATA_READ", [18] = "MIG_DATA_WRITE",
}
local REGIONS = {
  [0] = "BAR0", [1] = "BAR1", [2] = "BAR2", [3] = "BAR3", [4] = "BAR4", [5] = "BAR5", [6] = "ROM", [7] = "config",
  [8] = "VGA",
}
local IRQS = { [0] = "INTx", [1] = "MSI", [2] = "MSI-X", [3] = "ERR", [4] = "REQ" }
local TYPES = { [0] = "ioeventfd", [1] = "ioregionfd", [2] = "shadow ioeventfd" }
local FEATURES = {
  [1] = "MIGRATION", [2] = "MIG_DEVICE_STATE", [6] = "DMA_LOGGING_START", [7] = "DMA_LOGGING_STOP",
  [8] = "DMA_LOGGING_REPORT",
}
local STATES = {
  [0] = "ERROR", [1] = "STOP", [2] = "RUNNING", [3] = "STOP_COPY", [4] = "RESUMING", [5] = "RUNNING_P2P",
  [6] = "PRE_COPY", [7] = "PRE_COPY_P2P",
}
local CAPABILITIES = { [1] = "sparse mmap", [2] = "type" }
local ERRORS = {
  [0] = "none", [1] = "EPERM", [2] = "ENOENT", [5] = "EIO", [7] = "E2BIG", [9] = "EBADF", [11] = "EAGAIN", [12] = "ENOMEM",
  [13] = "EACCES", [14] = "EFAULT", [16] = "EBUSY", [17] = "EEXIST", [19] = "ENODEV", [22] = "EINVAL",
  [24] = "EMFILE", [25] = "ENOTTY", [27] = "EFBIG", [28] = "ENOSPC", [34] = "ERANGE", [35] = "EDEADLK",
  [38] = "ENOSYS", [75] = "EOVERFLOW", [95] = "ENOTSUP", [110] = "ETIMEDOUT",
}
local SIDES = { [0] = "client", [1] = "server" }
local RESPONSE_IN = ProtoField.framenum("vfio_user.reply_in", "Reply in", base.NONE, frametype.RESPONSE)
local REQUEST_IN = ProtoField.framenum("vfio_user.command_in", "Command in", base.NONE, frametype.REQUEST)

-- Fields -----------------------------------------------------------------------------------------------------------

local all = { RESPONSE_IN, REQUEST_IN }

local function number(size, name, label, shown, names)
  local field = ProtoField["uint" .. 8 * size]("vfio_user." .. name, label, shown or base.DEC, names)
  all[#all + 1] = field
  return { field = field, size = size }
end

local function flags(name, ...)
  local found = number(4, name, "Flags", base.HEX)
  found.bits = {}
  for _, each in ipairs({ ... }) do
    local mask, word, label = each[1], each[2], each[3]
    local bit = ProtoField.bool("vfio_user." .. name .. "." .. word, label, 32, nil, mask)
    found.bits[#found.bits + 1] = bit
    all[#all + 1] = bit
  end
  return found
end

local function other(kind, name, label, ...)
  local field = ProtoField[kind]("vfio_user." .. name, label, ...)
  all[#all + 1] = field
  return field
end

local side = other("uint8", "sender", "Sender", base.DEC, SIDES)
local fds = other("uint16", "fds", "File descriptors")
local id = number(2, "id", "Message ID")
local command = number(2, "command", "Command", base.DEC, COMMANDS)
local size = number(4, "size", "Message size")
local kind = flags("flags", { 0x01, "reply", "Reply" }, { 0x10, "no_reply", "No reply wanted" }, { 0x20, "error", "Error" })
local err = number(4, "error", "Error", base.DEC, ERRORS)
local time = other("relative_time", "time", "Time since the command")
local label = other("string", "register", "Register")
local data = other("bytes", "data", "Data")
local value = number(8, "value", "Value", base.HEX)
local json = other("string", "version.json", "Capabilities")

local argsz = number(4, "argsz", "Size of the arguments")
local major, minor = number(2, "version.major", "Major"), number(2, "version.minor", "Minor")
local address = number(8, "dma.address", "DMA address", base.HEX)
local dma_size, dma_count = number(8, "dma.size", "Size", base.HEX), number(8, "dma.count", "Count")
local dma_offset = number(8, "dma.offset", "Offset in the file", base.HEX)
local map_flags = flags("dma_map.flags", { 1, "read", "Readable" }, { 2, "write", "Writable" },
  { 4, "mmap", "Access by mmap" }, { 8, "file", "Access by file I/O" })
local unmap_flags = flags("dma_unmap.flags", { 1, "bitmap", "Get the dirty bitmap" }, { 2, "all", "All maps" })
local info_flags = flags("info.flags", { 1, "reset", "Can be reset" }, { 2, "pci", "PCI device" })
local regions, irqs = number(4, "info.regions", "Regions"), number(4, "info.irqs", "Kinds of interrupt")
local region = number(4, "region", "Region", base.DEC, REGIONS)
local region_flags = flags("region_info.flags", { 1, "read", "Readable" }, { 2, "write", "Writable" },
  { 4, "mmap", "Can be mapped" }, { 8, "caps", "Capabilities follow" })
local cap_offset = number(4, "region_info.cap_offset", "Offset of the capabilities", base.HEX)
local region_size = number(8, "region_info.size", "Size", base.HEX)
local region_offset = number(8, "region_info.offset", "Offset in the file", base.HEX)
local cap_id = number(2, "cap.id", "Capability", base.DEC, CAPABILITIES)
local cap_version, cap_next = number(2, "cap.version", "Version"), number(4, "cap.next", "Offset of the next", base.HEX)
local areas, reserved = number(4, "cap.areas", "Areas"), number(4, "reserved", "Reserved", base.HEX)
local area_offset, area_size = number(8, "area.offset", "Offset", base.HEX), number(8, "area.size", "Size", base.HEX)
local cap_type, cap_subtype = number(4, "cap.type", "Type"), number(4, "cap.subtype", "Subtype")
local no_flags = number(4, "io_fds.flags", "Flags", base.HEX)
local count = number(4, "count", "Count")
local sub_offset, sub_size = number(8, "io_fd.offset", "Offset", base.HEX), number(8, "io_fd.size", "Size")
local fd_index, fd_type = number(4, "io_fd.fd_index", "Index of its fd"), number(4, "io_fd.type", "Type", base.DEC, TYPES)
local event_flags = flags("io_fd.event_flags", { 1, "datamatch", "Match of the value" }, { 2, "pio", "Port I/O" },
  { 8, "ccw", "virtio-ccw" })
local ioregion_flags = flags("io_fd.region_flags", { 1, "pio", "Port I/O" }, { 2, "posted", "Posted writes" })
local padding = number(4, "io_fd.padding", "Padding", base.HEX)
local datamatch, user_data = number(8, "io_fd.datamatch", "Value", base.HEX), number(8, "io_fd.user_data", "User data", base.HEX)
local shadow_fd = number(4, "io_fd.shadow_fd_index", "Index of the fd of its memory")
local shadow_offset = number(8, "io_fd.shadow_offset", "Offset in its memory", base.HEX)
local irq = number(4, "irq", "Interrupt", base.DEC, IRQS)
local irq_flags = flags("irq_info.flags", { 1, "eventfd", "By eventfd" }, { 2, "maskable", "Maskable" },
  { 4, "automasked", "Masks itself" }, { 8, "noresize", "Cannot be resized" })
local set_flags = flags("set_irqs.flags", { 1, "none", "No data" }, { 2, "bool", "Booleans" }, { 4, "eventfd", "Eventfds" },
  { 8, "mask", "Mask" }, { 16, "unmask", "Unmask" }, { 32, "trigger", "Trigger" })
local start = number(4, "set_irqs.start", "First vector")
local offset = number(8, "offset", "Offset", base.HEX)
local writes = number(8, "write_multi.count", "Writes")
local feature_flags = flags("feature.flags", { 0x10000, "get", "Get" }, { 0x20000, "set", "Set" }, { 0x40000, "probe", "Probe" })
local feature = other("uint32", "feature.number", "Feature", base.DEC, FEATURES, 0xFFFF)
feature_flags.bits[#feature_flags.bits + 1] = feature
local migration = number(8, "migration.flags", "Migration flags", base.HEX)
local state, state_fd = number(4, "migration.state", "State", base.DEC, STATES), number(4, "migration.fd", "Data fd")
local page, ranges = number(8, "logging.page_size", "Page size"), number(4, "logging.ranges", "Ranges")
local iova, iova_size = number(8, "logging.address", "Address", base.HEX), number(8, "logging.size", "Length", base.HEX)
local mig_size = number(4, "migration.size", "Size")

local refused = ProtoExpert.new("vfio_user.refused", "The command was refused", expert.group.RESPONSE_CODE, expert.severity.WARN)
local short = ProtoExpert.new("vfio_user.short", "The message is shorter than its fields", expert.group.MALFORMED, expert.severity.ERROR)
local unequal = ProtoExpert.new("vfio_user.unequal", "The lengths do not agree", expert.group.MALFORMED, expert.severity.ERROR)
local orphan = ProtoExpert.new("vfio_user.orphan", "A reply to no command of this capture", expert.group.SEQUENCE, expert.severity.NOTE)
local unknown = ProtoExpert.new("vfio_user.unknown", "Not a command of the protocol", expert.group.PROTOCOL, expert.severity.WARN)
vfio_user.fields = all
vfio_user.experts = { refused, short, unequal, orphan, unknown }

-- What an earlier packet has told ------------------------------------------------------------------------------------

local device, places, exact, waiting, command_of, reply_of

local function forget()
  device, places, exact = "", {}, {}
  waiting, command_of, reply_of = {}, {}, {}
end
vfio_user.init = forget
forget()

local function name_of(region_number, at)
  local found = exact[region_number .. ":" .. at]
  if found then return found end
  for _, each in ipairs(places[region_number] or {}) do
    if at >= each.offset and at < each.offset + each.size then
      return string.format("%s+%#x", each.name, at - each.offset)
    end
  end
  return nil
end

-- Parts of messages --------------------------------------------------------------------------------------------------

local function has(tvb, at, need, tree)
  if at + need <= tvb:len() then return true end
  if tvb:len() == tvb:reported_len() then tree:add_proto_expert_info(short) end
  return false
end

-- Adds fields one after the other. Returns the offset behind them, or nil if the message ends before.
local function add(tvb, at, tree, fields)
  for _, each in ipairs(fields) do
    if not has(tvb, at, each.size, tree) then return nil end
    local item = tree:add_le(each.field, tvb(at, each.size))
    for _, bit in ipairs(each.bits or {}) do item:add_le(bit, tvb(at, each.size)) end
    at = at + each.size
  end
  return at
end

-- Adds ``length`` bytes of data, as far as they were captured, and as a number if they are at most eight.
local function add_data(tvb, at, length, tree)
  if length == 0 or at >= tvb:len() then return "" end
  local range = tvb(at, math.min(length, tvb:len() - at))
  tree:add(data, range)
  if length > 8 or range:len() < length then return string.format(" (%d bytes)", length) end
  local read = 0
  for place = length - 1, 0, -1 do read = read << 8 | tvb(at + place, 1):uint() end
  tree:add(value.field, range, UInt64(read & 0xFFFFFFFF, read >> 32 & 0xFFFFFFFF)):set_generated()
  return string.format(" = 0x%0" .. 2 * length .. "x", read)
end

-- A number of 64 bits in hexadecimal: as a number of Lua it may have lost some of them.
local function hex(range)
  return "0x" .. range:le_uint64():tohex():gsub("^0+(%x)", "%1")
end

local function place(tvb, at, tree)
  local where, number_of = tvb(at, 8):le_uint64():tonumber(), tvb(at + 8, 4):le_uint()
  local name = name_of(number_of, where)
  if name then tree:add(label, tvb(at, 12), name):set_generated() end
  local plain = string.format("%s+%s", REGIONS[number_of] or ("region " .. number_of), hex(tvb(at, 8)))
  return name and string.format("%s (%s)", name, plain) or plain
end

local function region_info(tvb, at, tree)
  local first = at
  at = add(tvb, at, tree, { argsz, region_flags, region, cap_offset, region_size, region_offset })
  if not at then return "" end
  local told = string.format(" %s", REGIONS[tvb(first + 8, 4):le_uint()] or "?")
  local next_cap, seen = tvb(first + 12, 4):le_uint(), 0
  if tvb(first + 4, 4):le_uint() & 8 == 0 then next_cap = 0 end
  while next_cap ~= 0 and seen < 16 do
    local here = first + next_cap
    if not has(tvb, here, 8, tree) then return told end
    local number_of = tvb(here, 2):le_uint()
    local inner = tree:add(vfio_user, tvb(here), "Capability: " .. (CAPABILITIES[number_of] or tostring(number_of)))
    next_cap, seen = tvb(here + 4, 4):le_uint(), seen + 1
    here = add(tvb, here, inner, { cap_id, cap_version, cap_next })
    if number_of == 1 then
      here = add(tvb, here, inner, { areas, reserved })
      local left = here and tvb(here - 8, 4):le_uint() or 0
      while here and left > 0 do
        here, left = add(tvb, here, inner, { area_offset, area_size }), left - 1
      end
    elseif number_of == 2 then
      add(tvb, here, inner, { cap_type, cap_subtype })
    end
  end
  return told
end

local function io_fds(tvb, at, tree)
  local first = at
  at = add(tvb, at, tree, { argsz, no_flags, region, count })
  if not at then return "" end
  local entries = tvb(first + 12, 4):le_uint()
  local told = string.format(" %s, %d sub-regions", REGIONS[tvb(first + 8, 4):le_uint()] or "?", entries)
  local all_bytes = tvb:reported_len() - at
  if entries == 0 or all_bytes == 0 then return told end
  local stride = (tvb(first, 4):le_uint() - 16) // entries
  if stride ~= 40 and stride ~= 48 then
    tree:add_proto_expert_info(unequal)
    return told
  end
  for _ = 1, entries do
    if not has(tvb, at, stride, tree) then return told end
    local inner = tree:add(vfio_user, tvb(at, stride), "Sub-region")
    local by_region = tvb(at + 20, 4):le_uint() == 1
    local here = add(tvb, at, inner, { sub_offset, sub_size, fd_index, fd_type, by_region and ioregion_flags or event_flags })
    if by_region then
      add(tvb, here, inner, { padding, user_data })
    elseif stride == 40 then
      add(tvb, here, inner, { padding, datamatch })
    else
      add(tvb, here, inner, { shadow_fd, shadow_offset, datamatch })
    end
    at = at + stride
  end
  return told
end

local function set_irqs(tvb, at, tree)
  local first = at
  at = add(tvb, at, tree, { argsz, set_flags, irq, start, count })
  if not at then return "" end
  if tvb(first + 4, 4):le_uint() & 2 ~= 0 then
    local want = tvb(first + 16, 4):le_uint()
    if tvb:reported_len() - at < want then tree:add_proto_expert_info(unequal) end
    add_data(tvb, at, want, tree)
  end
  local begin = tvb(first + 12, 4):le_uint()
  return string.format(" %s, %d from %d", IRQS[tvb(first + 8, 4):le_uint()] or "?", tvb(first + 16, 4):le_uint(), begin)
end

local function access(tvb, at, tree, with_data)
  local first = at
  at = add(tvb, at, tree, { offset, region, count })
  if not at then return "" end
  local length, left = tvb(first + 12, 4):le_uint(), tvb:reported_len() - at
  if left ~= (with_data and length or 0) then tree:add_proto_expert_info(unequal) end
  local told = " " .. place(tvb, first, tree)
  return with_data and told .. add_data(tvb, at, left, tree) or string.format("%s, %d bytes", told, length)
end

local function dma(tvb, at, tree, with_data)
  local first = at
  at = add(tvb, at, tree, { address, dma_count })
  if not at then return "" end
  local length, left = tvb(first + 8, 8):le_uint64():tonumber(), tvb:reported_len() - at
  if left ~= (with_data and length or 0) then tree:add_proto_expert_info(unequal) end
  if with_data then add_data(tvb, at, left, tree) end
  return string.format(" %s bytes at %s", tvb(first + 8, 8):le_uint64(), hex(tvb(first, 8)))
end

local function write_multi(tvb, at, tree)
  local first = at
  at = add(tvb, at, tree, { writes })
  if not at then return "" end
  local entries = tvb(first, 8):le_uint64():tonumber()
  for _ = 1, math.min(entries, (tvb:reported_len() - at) // 24) do
    if not has(tvb, at, 24, tree) then break end
    local inner = tree:add(vfio_user, tvb(at, 24), "Write")
    add(tvb, at, inner, { offset, region, count })
    inner:append_text(": " .. place(tvb, at, inner) .. add_data(tvb, at + 16, math.min(tvb(at + 12, 4):le_uint(), 8), inner))
    at = at + 24
  end
  return string.format(" %s writes", tvb(first, 8):le_uint64())
end

local function device_feature(tvb, at, tree)
  local first = at
  at = add(tvb, at, tree, { argsz, feature_flags })
  if not at then return "" end
  local number_of = tvb(first + 4, 4):le_uint() & 0xFFFF
  local told = " " .. (FEATURES[number_of] or tostring(number_of))
  if tvb:reported_len() == at then return told end
  if number_of == 1 then
    add(tvb, at, tree, { migration })
  elseif number_of == 2 then
    add(tvb, at, tree, { state, state_fd })
  elseif number_of == 6 or number_of == 7 then
    at = add(tvb, at, tree, { page, ranges, reserved })
    while at and at < tvb:reported_len() do at = add(tvb, at, tree, { iova, iova_size }) end
  elseif number_of == 8 then
    at = add(tvb, at, tree, { iova, iova_size, page })
    if at then add_data(tvb, at, tvb:reported_len() - at, tree) end
  else
    add_data(tvb, at, tvb:reported_len() - at, tree)
  end
  return told
end

local function migration_data(tvb, at, tree)
  at = add(tvb, at, tree, { argsz, mig_size })
  if at then add_data(tvb, at, tvb:reported_len() - at, tree) end
  return ""
end

local function version(tvb, at, tree)
  local first = at
  at = add(tvb, at, tree, { major, minor })
  if not at then return "" end
  if tvb:len() > at then tree:add(json, tvb(at), (tvb(at):string():gsub("\0.*", ""))) end
  return string.format(" %d.%d", tvb(first, 2):le_uint(), tvb(first + 2, 2):le_uint())
end

local function of(fields)
  return function(tvb, at, tree)
    add(tvb, at, tree, fields)
    return ""
  end
end

local function with_data(what, whether)
  return function(tvb, at, tree) return what(tvb, at, tree, whether) end
end

local empty = of({})
local PAYLOADS = { -- of a command, and of its reply
  [1] = { version, version },
  [2] = { of({ argsz, map_flags, dma_offset, address, dma_size }), empty },
  [3] = { of({ argsz, unmap_flags, address, dma_size }), of({ argsz, unmap_flags, address, dma_size }) },
  [4] = { of({ argsz, info_flags, regions, irqs }), of({ argsz, info_flags, regions, irqs }) },
  [5] = { region_info, region_info },
  [6] = { io_fds, io_fds },
  [7] = { of({ argsz, irq_flags, irq, count }), of({ argsz, irq_flags, irq, count }) },
  [8] = { set_irqs, empty },
  [9] = { with_data(access, false), with_data(access, true) },
  [10] = { with_data(access, true), with_data(access, false) },
  [11] = { with_data(dma, false), with_data(dma, true) },
  [12] = { with_data(dma, true), with_data(dma, false) },
  [13] = { empty, empty },
  [15] = { write_multi, of({ writes }) },
  [16] = { device_feature, device_feature },
  [17] = { migration_data, migration_data },
  [18] = { migration_data, empty },
}

-- Messages -----------------------------------------------------------------------------------------------------------

-- Remembers commands that wait for a reply. A message id belongs to the side that has sent the command.
local function match(pinfo, asker, number_of, is_reply, wants_reply)
  if pinfo.visited then return end
  local key = asker .. ":" .. number_of
  if is_reply then
    local asked = waiting[key]
    if asked then
      waiting[key], command_of[pinfo.number], reply_of[asked.frame] = nil, asked, pinfo.number
    end
  elseif wants_reply then
    waiting[key] = { frame = pinfo.number, time = pinfo.rel_ts }
  end
end

function vfio_user.dissector(tvb, pinfo, tree)
  pinfo.cols.protocol = "vfio-user"
  local top = tree:add(vfio_user, tvb())
  if not has(tvb, 0, 20, top) then return tvb:len() end
  local sender, number_of, is = tvb(0, 1):uint(), tvb(6, 2):le_uint(), tvb(12, 4):le_uint()
  local is_reply, failed = is & 0xF == 1, is & 0x20 ~= 0
  pinfo.cols.src, pinfo.cols.dst = SIDES[sender] or "?", SIDES[1 - sender] or "?"
  top:add(side, tvb(0, 1))
  top:add_le(fds, tvb(2, 2))
  local at = add(tvb, 4, top, { id, command, size, kind, err })
  match(pinfo, is_reply and 1 - sender or sender, tvb(4, 2):le_uint(), is_reply, is & 0x10 == 0)
  local asked = command_of[pinfo.number]
  if is_reply and asked then
    top:add(REQUEST_IN, asked.frame):set_generated()
    local seconds = math.max(0, pinfo.rel_ts - asked.time)
    top:add(time, NSTime.new(math.floor(seconds), math.floor(seconds % 1 * 1e9))):set_generated()
  elseif is_reply then
    top:add_proto_expert_info(orphan)
  elseif reply_of[pinfo.number] then
    top:add(RESPONSE_IN, reply_of[pinfo.number]):set_generated()
  end
  if tvb(8, 4):le_uint() ~= tvb:reported_len() - 4 then top:add_proto_expert_info(unequal) end
  local told = COMMANDS[number_of] or ("command " .. number_of)
  top:append_text(", " .. told .. (is_reply and " reply" or ""))
  if is_reply then told = told .. " reply" end
  if failed then
    local errno = tvb(16, 4):le_uint()
    told = told .. ": " .. (ERRORS[errno] or ("error " .. errno))
    top:add_proto_expert_info(refused)
  elseif PAYLOADS[number_of] then
    told = told .. PAYLOADS[number_of][is_reply and 2 or 1](tvb, at, top)
  else
    top:add_proto_expert_info(unknown)
    add_data(tvb, at, tvb:reported_len() - at, top)
  end
  local descriptors = tvb(2, 2):le_uint()
  if descriptors > 0 then told = string.format("%s [%d fds]", told, descriptors) end
  pinfo.cols.info = told
  return tvb:len()
end

-- Events of a device, which no message shows -------------------------------------------------------------------------

local KINDS = {
  [0] = "names", [3] = "ring", [4] = "ring with a value", [5] = "interrupt", [9] = "reset", [10] = "client comes",
  [11] = "client leaves",
}
local MECHANISMS = { [0] = "message", [1] = "ioeventfd", [2] = "shadow", [3] = "ioregionfd" }
local OUTCOMES = { [0] = "lost", [1] = "sent", [2] = "pending" }
local event = {
  kind = ProtoField.uint8("bellwire.kind", "Kind", base.DEC, KINDS),
  region = ProtoField.uint8("bellwire.region", "Region", base.DEC, REGIONS),
  irq = ProtoField.uint8("bellwire.irq", "Interrupt", base.DEC, IRQS),
  width = ProtoField.uint16("bellwire.width", "Width in bytes"),
  count = ProtoField.uint32("bellwire.count", "Count"),
  vector = ProtoField.uint32("bellwire.vector", "Vector"),
  offset = ProtoField.uint64("bellwire.offset", "Offset", base.HEX),
  value = ProtoField.uint64("bellwire.value", "Value", base.HEX),
  level = ProtoField.uint64("bellwire.level", "Level"),
  mechanism = ProtoField.uint32("bellwire.mechanism", "Mechanism", base.DEC, MECHANISMS),
  outcome = ProtoField.uint32("bellwire.outcome", "Outcome", base.DEC, OUTCOMES),
  name = ProtoField.string("bellwire.name", "Name"),
  device = ProtoField.string("bellwire.device", "Device"),
}
local cut = ProtoExpert.new("bellwire.short", "The event is shorter than its fields", expert.group.MALFORMED, expert.severity.ERROR)
bellwire.fields = event
bellwire.experts = { cut }

-- Takes the names of the device and of its registers, which begin every file.
local function learn(tvb, top, visited)
  local at = 2 + tvb(1, 1):uint()
  local of_device = tvb(2, at - 2):string()
  top:add(event.device, tvb(2, at - 2))
  if not visited then device, places, exact = of_device, {}, {} end
  while at + 16 <= tvb:len() do
    local number_of, length = tvb(at, 1):uint(), tvb(at + 2, 2):le_uint()
    local bytes, where = tvb(at + 4, 4):le_uint(), tvb(at + 8, 8):le_uint64():tonumber()
    if at + 16 + length > tvb:len() then break end
    local name = tvb(at + 16, length):string()
    top:add(event.name, tvb(at, 16 + length), name):append_text(string.format(" (%s+%#x)", REGIONS[number_of] or "?", where))
    if not visited then
      places[number_of] = places[number_of] or {}
      table.insert(places[number_of], { offset = where, size = bytes, name = name })
      exact[number_of .. ":" .. where] = name
    end
    at = at + 16 + length
  end
  return "names of " .. of_device
end

function bellwire.dissector(tvb, pinfo, tree)
  pinfo.cols.protocol = "bellwire"
  local top = tree:add(bellwire, tvb())
  local kind_of = tvb(0, 1):uint()
  top:add(event.kind, tvb(0, 1))
  if kind_of == 0 then
    pinfo.cols.info = learn(tvb, top, pinfo.visited)
    return tvb:len()
  end
  if tvb:len() < 32 then
    top:add_proto_expert_info(cut)
    return tvb:len()
  end
  local name_size = tvb(28, 2):le_uint()
  if tvb:len() < 32 + name_size then
    top:add_proto_expert_info(cut)
    return tvb:len()
  end
  local name = name_size > 0 and tvb(32, name_size):string() or ""
  local times, detail = tvb(4, 4):le_uint(), tvb(24, 4):le_uint()
  local told = KINDS[kind_of] or ("event " .. kind_of)
  if name ~= "" then
    top:add(event.name, tvb(32, name_size))
    told = (kind_of == 5 and "interrupt " or "ring ") .. name
  end
  local by_guest = kind_of ~= 5
  if kind_of == 3 or kind_of == 4 then
    top:add(event.region, tvb(1, 1))
    top:add_le(event.width, tvb(2, 2))
    top:add_le(event.offset, tvb(8, 8))
    top:add_le(event.count, tvb(4, 4))
    top:add_le(event.mechanism, tvb(24, 4))
    if kind_of == 4 then
      top:add_le(event.value, tvb(16, 8))
      told = string.format("%s = %s", told, hex(tvb(16, 8)))
    end
    if times > 1 then told = string.format("%s, %d times", told, times) end
    told = string.format("%s (%s)", told, MECHANISMS[detail] or "?")
  elseif kind_of == 5 then
    top:add(event.irq, tvb(1, 1))
    top:add_le(event.vector, tvb(4, 4))
    if tvb(1, 1):uint() == 0 then
      top:add_le(event.level, tvb(16, 8))
      told = told .. (tvb(16, 1):uint() == 1 and " rises" or " falls")
    else
      told = string.format("%s %d", told, times)
    end
    top:add_le(event.outcome, tvb(24, 4))
    told = string.format("%s (%s)", told, OUTCOMES[detail] or "?")
  end
  pinfo.cols.src, pinfo.cols.dst = by_guest and "guest" or device, by_guest and device or "guest"
  pinfo.cols.info = told
  return tvb:len()
end
